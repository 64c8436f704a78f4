// What the files of the C library call of each other.

#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#define PUBLIC __attribute__((visibility("default")))
#define INLINE static inline __attribute__((always_inline))
#if defined(__x86_64__) && defined(__gnu_linux__) && !defined(__clang__)
#define FOR_EACH_CPU __attribute__((target_clones("avx2", "default")))
#else
#define FOR_EACH_CPU
#endif

typedef struct Turbo Turbo;

// Return which loops run: 0, 1 with AVX2, 2 with AVX-512 and VBMI2.
int turbo_kind(void);

#define PACKED_PADDING 2048 // bytes that may be read behind packed coefficients; image/coefficients.py has it, too
enum { TURBO_GOOD, TURBO_CORRUPT, TURBO_OTHER_VERSION };

// Return memory of at least `num_bytes` for a use, 0 or 1, which lasts until the next call; NULL where it lacks.
uint8_t *turbo_memory(Turbo *turbo, int use, int64_t num_bytes);
// Make `memory` hold `needed` bytes at least; what it held is lost. Return 0 where memory lacks.
static inline int turbo_reserve(uint8_t **memory, size_t *capacity, size_t needed) {
    if (*capacity >= needed) return 1;
    free(*memory);
    *capacity = needed + needed / 4;
    *memory = malloc(*capacity);
    if (!*memory) *capacity = 0;
    return *memory != NULL;
}
#define LARGE_BYTES (24 << 20) // more is not kept for the next image
void turbo_free_large(Turbo *turbo);
int fastpsl_turbo_decode(
    Turbo *turbo, const uint8_t *jpeg, uint64_t num_bytes, uint32_t height, uint32_t width, uint32_t denominator,
    int is_smooth, int is_packed, const int64_t region[4], uint8_t *pixels, int64_t placed[4]
);
int fastpsl_area_resize(
    const uint8_t *pixels, int64_t stride, double top, double left, double box_height, double box_width,
    uint8_t *out, int64_t height, int64_t width
);
// Resize the first `box_height` x `box_width` of a plane. `out_stride` is a multiple of 4, up to which pixels may be
// written over. Returns 0, or 1 where memory lacks or the factor is too large.
int area_resize_plane(
    const uint8_t *plane, int64_t stride, double box_height, double box_width, uint8_t *out, int64_t out_stride,
    int64_t height, int64_t width
);
int fastpsl_isotropic_resize(
    const uint8_t *pixels, int64_t rows, int64_t columns, int64_t top, int64_t left, int64_t side, int is_diagonal,
    uint8_t *out, int64_t size
);
int64_t isotropic_reach(int64_t side, int64_t size);
int64_t isotropic_margin(int64_t side, int64_t size);
