// Flip and normalisation of bytes by a table. The binding is in c_look_up.py, the same loop for numba in
// fused_cpu/by_table.py.
//
// Where multiplication and addition give each value of a float table to the bit, they take its place: eight at a time
// they take less than half of the time.

#include <math.h>
#include <stdint.h>
#include <string.h>

#define PUBLIC __attribute__((visibility("default")))
// Of results: more than a core's caches hold, so that they are written past them.
#define STREAMED_BYTES (16 << 20)

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

#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>
#define AVX2 __attribute__((target("avx2,fma")))
#define INLINE static inline __attribute__((always_inline)) AVX2

enum { BY_TABLE, BY_PRODUCT, BY_FUSED_PRODUCT }; // the last rounds once

// Return how `factors`, three scales and three shifts, give the values of a table of floats.
static int find_way(const float *table, const float *factors) {
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return BY_TABLE;
    for (int way = BY_PRODUCT; way <= BY_FUSED_PRODUCT; way++) {
        int is_equal = 1;
        for (int i = 0; i < 3 * 256 && is_equal; i++) {
            float byte = (float)(i % 256), scale = factors[i / 256], shift = factors[3 + i / 256];
            float value = way == BY_PRODUCT ? byte * scale + shift : fmaf(byte, scale, shift);
            is_equal = !memcmp(&value, &table[i], sizeof value);
        }
        if (is_equal) return way;
    }
    return BY_TABLE;
}

INLINE void store(__m128i bytes, __m256 scale, __m256 shift, int way, int is_streamed, float *out) {
    __m256 values = _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(bytes));
    values = way == BY_PRODUCT ? _mm256_add_ps(_mm256_mul_ps(values, scale), shift)
                               : _mm256_fmadd_ps(values, scale, shift);
    if (is_streamed) _mm256_stream_ps(out, values);
    else _mm256_storeu_ps(out, values);
}

// Compute the pixels of a row, as above.
INLINE void row_by(
    const uint8_t *row, int64_t width, int is_flipped, const float *table, const float *factors, int way,
    int is_streamed, float *out
) {
    // Four pixels of twelve bytes, the last one first, from the upper and from the lower end of 16 bytes.
    const __m128i upper = _mm_setr_epi8(13, 14, 15, 10, 11, 12, 7, 8, 9, 4, 5, 6, -1, -1, -1, -1);
    const __m128i lower = _mm_setr_epi8(9, 10, 11, 6, 7, 8, 3, 4, 5, 0, 1, 2, -1, -1, -1, -1);
    float each[2][24];
    for (int i = 0; i < 24; i++) each[0][i] = factors[i % 3], each[1][i] = factors[3 + i % 3];
    __m256 scale[3], shift[3];
    for (int i = 0; i < 3; i++) scale[i] = _mm256_loadu_ps(each[0] + 8 * i), shift[i] = _mm256_loadu_ps(each[1] + 8 * i);
    int64_t j = 0;
    for (; j + 8 <= width; j += 8, out += 24) {
        const uint8_t *pixels = row + 3 * (is_flipped ? width - 8 - j : j);
        __m128i first = _mm_loadu_si128((const void *)pixels), last = _mm_loadu_si128((const void *)(pixels + 8));
        __m128i parts[3] = {first, last, _mm_srli_si128(last, 8)}; // of each, the first eight bytes
        if (is_flipped) {
            __m128i one = _mm_shuffle_epi8(last, upper), two = _mm_shuffle_epi8(first, lower);
            parts[0] = one;
            parts[1] = _mm_or_si128(_mm_srli_si128(one, 8), _mm_slli_si128(two, 4));
            parts[2] = _mm_srli_si128(two, 4);
        }
        for (int i = 0; i < 3; i++) store(parts[i], scale[i], shift[i], way, is_streamed, out + 8 * i);
    }
    row_of_uint32_t(is_flipped ? row : row + 3 * j, width - j, is_flipped, (const void *)table, (void *)out);
}

AVX2 static void row_by_factors(
    const uint8_t *row, int64_t width, int is_flipped, const float *table, const float *factors, int way,
    int is_streamed, float *out
) {
    is_streamed = is_streamed && (uintptr_t)out % sizeof(__m256) == 0;
    if (is_streamed && way == BY_PRODUCT) row_by(row, width, is_flipped, table, factors, BY_PRODUCT, 1, out);
    else if (is_streamed) row_by(row, width, is_flipped, table, factors, BY_FUSED_PRODUCT, 1, out);
    else if (way == BY_PRODUCT) row_by(row, width, is_flipped, table, factors, BY_PRODUCT, 0, out);
    else row_by(row, width, is_flipped, table, factors, BY_FUSED_PRODUCT, 0, out);
}

static void end_streams(void) { _mm_sfence(); }
#else
enum { BY_TABLE };
static int find_way(const float *table, const float *factors) { return BY_TABLE; }
static void row_by_factors(
    const uint8_t *row, int64_t width, int is_flipped, const float *table, const float *factors, int way,
    int is_streamed, float *out
) {}
static void end_streams(void) {}
#endif

// Process the images first, first + step, ... of `pixels`, uint8 [num, height, width, 3]. `table` [3, 256] and
// `out`, of the shape of `pixels`, have values of `size` bytes: 2, 4 or 8. `flip` is [num]. `factors` are the three
// scales and three shifts of a table of floats, or NULL.
PUBLIC void fastpsl_look_up(
    const uint8_t *pixels, const uint8_t *flip, const void *table, void *out, int64_t num, int64_t height,
    int64_t width, int64_t size, int64_t first, int64_t step, const float *factors
) {
    int way = factors ? find_way(table, factors) : BY_TABLE;
    int is_streamed = num * height * width * 3 * size >= STREAMED_BYTES;
    for (int64_t b = first; b < num; b += step)
        for (int64_t i = 0; i < height; i++) {
            int64_t at = (b * height + i) * width * 3;
            if (way != BY_TABLE)
                row_by_factors(pixels + at, width, flip[b], table, factors, way, is_streamed, (float *)out + at);
            else if (size == 2) row_of_uint16_t(pixels + at, width, flip[b], table, (uint16_t *)out + at);
            else if (size == 4) row_of_uint32_t(pixels + at, width, flip[b], table, (uint32_t *)out + at);
            else row_of_uint64_t(pixels + at, width, flip[b], table, (uint64_t *)out + at);
        }
    if (way != BY_TABLE && is_streamed) end_streams();
}
