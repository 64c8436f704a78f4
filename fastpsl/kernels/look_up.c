// Flip and normalisation of bytes by a table. The binding is in c_look_up.py, the same loop for numba in
// fused_cpu/by_table_loops.py.

#include <stdint.h>

#define PUBLIC __attribute__((visibility("default")))

// Look up the pixels of a row, uint8 [width, 3], in a table [3, 256] of one type, backwards if it is flipped.
#define ROW(Type)                                                                                              \
    static void row_of_##Type(                                                                                 \
        const uint8_t *restrict row, int64_t width, int is_flipped, const Type *restrict table, Type *restrict out \
    ) {                                                                                                        \
        int64_t along = is_flipped ? -3 : 3;                                                                   \
        const uint8_t *pixel = is_flipped ? row + 3 * (width - 1) : row;                                       \
        for (int64_t j = 0; j < width; j++, pixel += along, out += 3) {                                        \
            out[0] = table[pixel[0]];                                                                          \
            out[1] = table[256 + pixel[1]];                                                                    \
            out[2] = table[512 + pixel[2]];                                                                    \
        }                                                                                                      \
    }

ROW(uint16_t)
ROW(uint32_t)
ROW(uint64_t)

// Process the images first, first + step, ... of `pixels`, uint8 [num, height, width, 3]. `table` [3, 256] and
// `out`, of the shape of `pixels`, have values of `size` bytes: 2, 4 or 8. `flip` is [num].
PUBLIC void fastpsl_look_up(
    const uint8_t *pixels, const uint8_t *flip, const void *table, void *out, int64_t num, int64_t height,
    int64_t width, int64_t size, int64_t first, int64_t step
) {
    for (int64_t b = first; b < num; b += step)
        for (int64_t i = 0; i < height; i++) {
            int64_t at = (b * height + i) * width * 3;
            if (size == 2) row_of_uint16_t(pixels + at, width, flip[b], table, (uint16_t *)out + at);
            else if (size == 4) row_of_uint32_t(pixels + at, width, flip[b], table, (uint32_t *)out + at);
            else row_of_uint64_t(pixels + at, width, flip[b], table, (uint64_t *)out + at);
        }
}
