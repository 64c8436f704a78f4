// Area resize in 16-bit fixed point; area.py has the definition.
//
// Where the height shrinks, rows are mixed first, then columns; where it grows, each source row's columns once,
// then rows. A value has 8 bits behind the point, a weight 16, and the product's high half is kept, which is
// one instruction for 8 to 32 values. Columns are mixed in pairs of pixels, or with AVX-512 in groups, for which
// a permutation takes the values of a tap from a window of the line. The result is within 0.52 of the exact mean
// for up to MAX_TAPS taps.

#include <stdlib.h>
#include <string.h>
#ifdef __SSE2__
#include <emmintrin.h>
#endif

#include "turbo.h"

#define MAX_TAPS 34
#define LARGEST_SHRINK 32 // of either side, by fixed point
#define LANES 4 // of a pixel: red, green, blue, and the next one's red, which is ignored

// Return how much of pixel i the interval from `low` to `high` covers.
INLINE double share_of(double low, double high, int64_t i) {
    return (high < (double)i + 1 ? high : (double)i + 1) - (low > (double)i ? low : (double)i);
}

// Compute each output pixel's first source pixel and its weights, which sum to 65535. Returns the most taps.
static int make_taps(
    double start, double length, int size, int32_t *first, uint16_t (*weights)[MAX_TAPS], int32_t *counts
) {
    double step = length / size, half = (step > 1 ? step : 1) / 2, end = start + length;
    int most = 1, bound = (int)step + 3 < MAX_TAPS ? (int)step + 3 : MAX_TAPS;
    for (int c = 0; c < size; c++) {
        double centre = start + (c + 0.5) * step, low = centre - half, high = centre + half;
        if (low < start) low = start;
        if (high > end) high = end;
        int from = (int)low, to = (int)(high - 1e-6) + 1, sum = 0, largest = 0;
        int count = to - from < bound ? to - from : bound;
        double unit = 65535 / (high - low);
        for (int t = 0; t < count; t++) {
            double share = share_of(low, high, from + t);
            weights[c][t] = share > 0 ? (uint16_t)(share * unit + 0.5) : 0;
            sum += weights[c][t];
            if (weights[c][t] > weights[c][largest]) largest = t;
        }
        first[c] = from;
        weights[c][largest] += (uint16_t)(65535 - sum);
        for (int t = count; t < bound; t++) weights[c][t] = 0;
        counts[c] = count;
        if (count > most) most = count;
    }
    return most;
}

INLINE uint16_t scaled(uint8_t value, uint16_t weight) {
    return (uint16_t)(((uint32_t)(uint16_t)(value << 8) * weight) >> 16);
}

// Mix `count` rows of `num` bytes into `out`.
FOR_EACH_CPU static void mix_rows(
    const uint8_t *restrict rows, size_t stride, int count, const uint16_t *weights, int num, uint16_t *restrict out
) {
    const uint8_t *a = rows, *b = a + stride, *c = b + stride, *d = c + stride;
    uint16_t w0 = weights[0], w1 = weights[1], w2 = weights[2], w3 = weights[3];
    uint16_t bias = (uint16_t)(count / 2); // of what the products' low halves would add up to
    switch (count) {
    case 1:
        for (int j = 0; j < num; j++) out[j] = (uint16_t)(a[j] << 8);
        return;
    case 2:
        for (int j = 0; j < num; j++) out[j] = scaled(a[j], w0) + scaled(b[j], w1) + bias;
        return;
    case 3:
        for (int j = 0; j < num; j++) out[j] = scaled(a[j], w0) + scaled(b[j], w1) + scaled(c[j], w2) + bias;
        return;
    }
    for (int j = 0; j < num; j++)
        out[j] = scaled(a[j], w0) + scaled(b[j], w1) + scaled(c[j], w2) + scaled(d[j], w3) + bias;
    for (int t = 4; t < count; t++) {
        const uint8_t *row = rows + t * stride;
        uint16_t w = weights[t];
        for (int j = 0; j < num; j++) out[j] += scaled(row[j], w);
    }
}

#ifdef __SSE2__
typedef __m128i Lanes; // of two pixels
typedef char Bytes __attribute__((vector_size(16)));

// Return the sums for two output pixels, whose taps begin at `a` and `b`.
INLINE Lanes mixed_pair(const uint16_t *a, const uint16_t *b, const uint16_t *weights, int num_taps, int bias) {
    __m128i sum = _mm_set1_epi16((short)bias);
    for (int t = 0; t < num_taps; t++) {
        __m128d pair = _mm_castsi128_pd(_mm_loadl_epi64((const void *)(a + 3 * t)));
        pair = _mm_loadh_pd(pair, (const void *)(b + 3 * t));
        __m128i weight = _mm_loadu_si128((const void *)(weights + 2 * LANES * t));
        sum = _mm_add_epi16(sum, _mm_mulhi_epu16(_mm_castpd_si128(pair), weight));
    }
    return sum;
}

// Return the high bytes of four pixels in the first 12 bytes.
INLINE Bytes packed(Lanes low, Lanes high) {
    const Bytes order = {0, 1, 2, 4, 5, 6, 8, 9, 10, 12, 13, 14, 3, 7, 11, 15};
    return __builtin_shuffle((Bytes)_mm_packus_epi16(_mm_srli_epi16(low, 8), _mm_srli_epi16(high, 8)), order);
}
#else
typedef struct { uint16_t lanes[2 * LANES]; } Lanes;
typedef struct { uint8_t bytes[16]; } Bytes;

INLINE Lanes mixed_pair(const uint16_t *a, const uint16_t *b, const uint16_t *weights, int num_taps, int bias) {
    Lanes sum;
    for (int i = 0; i < 2 * LANES; i++) sum.lanes[i] = (uint16_t)bias;
    for (int t = 0; t < num_taps; t++, weights += 2 * LANES)
        for (int i = 0; i < 2 * LANES; i++) {
            uint16_t value = (i < LANES ? a : b)[3 * t + i % LANES];
            sum.lanes[i] += (uint16_t)((uint32_t)value * weights[i] >> 16);
        }
    return sum;
}

INLINE Bytes packed(Lanes low, Lanes high) {
    Bytes out = {{0}};
    for (int c = 0; c < 4; c++)
        for (int i = 0; i < 3; i++) out.bytes[3 * c + i] = (c < 2 ? low : high).lanes[c % 2 * LANES + i] >> 8;
    return out;
}
#endif

// Store four pixels at `out`, of which `num_left` are left. The next pixels' bytes may be written over.
INLINE void store(Bytes four, uint8_t *out, int num_left) {
    if (num_left >= 6)
        memcpy(out, &four, 16);
    else
        memcpy(out, &four, 3 * (size_t)(num_left < 4 ? num_left : 4));
}

// Store the sums of two pixels, three each. Two more are written over.
INLINE void store_sums(Lanes pair, uint16_t *sums) {
    memcpy(sums, &pair, sizeof pair / 2);
    memcpy(sums + 3, (const char *)&pair + sizeof pair / 2, sizeof pair / 2);
}

// Mix the columns of a line: to bytes in `out`, or to sums, three a pixel, in `sums` where `out` is NULL.
INLINE void mix_columns_of(
    const uint16_t *line, const int32_t *first, const uint16_t *weights, int num_taps, int size, uint8_t *out,
    uint16_t *sums
) {
    int bias = num_taps / 2 + (out ? 128 : 0), step = 2 * LANES * num_taps;
    for (int c = 0; c < size; c += 4, first += 4, weights += 2 * step) {
        Lanes low = mixed_pair(line + first[0], line + first[1], weights, num_taps, bias);
        Lanes high = mixed_pair(line + first[2], line + first[3], weights + step, num_taps, bias);
        if (out)
            store(packed(low, high), out + 3 * c, size - c);
        else {
            store_sums(low, sums + 3 * c);
            store_sums(high, sums + 3 * c + 6);
        }
    }
}

// Mix the columns of a line, as above. `weights` has 2 x LANES for each pair of pixels and tap.
INLINE void mix_columns(
    const uint16_t *line, const int32_t *first, const uint16_t *weights, int num_taps, int size, uint8_t *out,
    uint16_t *sums
) {
    switch (num_taps) { // so that the compiler unrolls the usual ones
    case 1: mix_columns_of(line, first, weights, 1, size, out, sums); return;
    case 2: mix_columns_of(line, first, weights, 2, size, out, sums); return;
    case 3: mix_columns_of(line, first, weights, 3, size, out, sums); return;
    case 4: mix_columns_of(line, first, weights, 4, size, out, sums); return;
    }
    mix_columns_of(line, first, weights, num_taps, size, out, sums);
}

FOR_EACH_CPU static void mix_columns_to_bytes(
    const uint16_t *line, const int32_t *first, const uint16_t *weights, int num_taps, int size, uint8_t *out
) {
    mix_columns(line, first, weights, num_taps, size, out, NULL);
}

FOR_EACH_CPU static void mix_columns_to_sums(
    const uint16_t *line, const int32_t *first, const uint16_t *weights, int num_taps, int size, uint16_t *sums
) {
    mix_columns(line, first, weights, num_taps, size, NULL, sums);
}

#define GROUP_LANES 32
#define WINDOW 64 // values of a line, of which a group takes those of a tap

// A division of a row's pixels into groups, which are mixed at once.
typedef struct {
    int pixels, num; // of a group, of which the last one has what is left; groups. Without groups, pixels is 0
    int32_t *first; // the first value of a group's first tap
    uint16_t *tables; // of each group: places in the window, and the weights of each tap, GROUP_LANES each
} Groups;

#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>

#define AVX512 __attribute__((target("avx512f,avx512bw,avx512vl")))
#define AVX512_INLINE AVX512 static inline __attribute__((always_inline))

// Return how many pixels a group has, of which a tap's values lie in a window; 0 if they are too few to pay.
INLINE int group_pixels(double step) {
    int pixels = (int)((WINDOW / 3 - 2) / (step > 1 ? step : 1)) + 1;
    if (pixels > GROUP_LANES / 3) pixels = GROUP_LANES / 3;
    return pixels < 4 ? 0 : pixels;
}

static void make_groups(
    Groups *groups, const int32_t *first, uint16_t (*weights)[MAX_TAPS], int num_taps, int size
) {
    uint16_t *table = groups->tables;
    memset(table, 0, (size_t)groups->num * (size_t)(1 + num_taps) * GROUP_LANES * sizeof *table);
    for (int g = 0; g < groups->num; g++, table += (1 + num_taps) * GROUP_LANES) {
        int c = g * groups->pixels;
        groups->first[g] = first[c];
        for (int lane = 0; lane < 3 * groups->pixels && c + lane / 3 < size; lane++) {
            table[lane] = (uint16_t)(first[c + lane / 3] - first[c] + lane % 3);
            for (int t = 0; t < num_taps; t++) table[(1 + t) * GROUP_LANES + lane] = weights[c + lane / 3][t];
        }
    }
}

AVX512_INLINE __m512i mixed_group(
    const uint16_t *line, const uint16_t *table, int num_taps, int bias
) {
    __m512i places = _mm512_loadu_si512(table), sum = _mm512_set1_epi16((short)bias);
    for (int t = 0; t < num_taps; t++, line += 3) {
        __m512i low = _mm512_loadu_si512(line), high = _mm512_loadu_si512(line + GROUP_LANES);
        __m512i values = _mm512_permutex2var_epi16(low, places, high);
        __m512i weight = _mm512_loadu_si512(table + (1 + t) * GROUP_LANES);
        sum = _mm512_add_epi16(sum, _mm512_mulhi_epu16(values, weight));
    }
    return sum;
}

// Mix the columns of a line, as `mix_columns`. A whole group is written, so `sums` has room for one more.
AVX512_INLINE void mix_groups_of(
    const uint16_t *line, const Groups *groups, int num_taps, int size, uint8_t *out, uint16_t *sums
) {
    const uint16_t *table = groups->tables;
    int bias = num_taps / 2 + (out ? 128 : 0), num = 3 * groups->pixels, num_left = 3 * size;
    for (int g = 0; g < groups->num; g++, table += (1 + num_taps) * GROUP_LANES, num_left -= num) {
        __m512i sum = mixed_group(line + groups->first[g], table, num_taps, bias);
        if (!out) {
            _mm512_storeu_si512(sums + g * num, sum);
            continue;
        }
        __m256i bytes = _mm512_cvtepi16_epi8(_mm512_srli_epi16(sum, 8));
        if (num_left >= GROUP_LANES)
            _mm256_storeu_si256((void *)(out + g * num), bytes);
        else
            memcpy(out + g * num, &bytes, (size_t)(num_left < num ? num_left : num));
    }
}

AVX512 static void mix_groups(
    const uint16_t *line, const Groups *groups, int num_taps, int size, uint8_t *out, uint16_t *sums
) {
    switch (num_taps) { // so that the compiler unrolls the usual ones
    case 1: mix_groups_of(line, groups, 1, size, out, sums); return;
    case 2: mix_groups_of(line, groups, 2, size, out, sums); return;
    case 3: mix_groups_of(line, groups, 3, size, out, sums); return;
    case 4: mix_groups_of(line, groups, 4, size, out, sums); return;
    }
    mix_groups_of(line, groups, num_taps, size, out, sums);
}
#else
INLINE int group_pixels(double step) { return (void)step, 0; }

static void make_groups(Groups *groups, const int32_t *first, uint16_t (*weights)[MAX_TAPS], int num_taps, int size) {
    (void)groups, (void)first, (void)weights, (void)num_taps, (void)size;
}

static void mix_groups(
    const uint16_t *line, const Groups *groups, int num_taps, int size, uint8_t *out, uint16_t *sums
) {
    (void)line, (void)groups, (void)num_taps, (void)size, (void)out, (void)sums;
}
#endif

// Mix two lines of `num` sums to bytes.
FOR_EACH_CPU static void mix_lines(
    const uint16_t *a, const uint16_t *b, const uint16_t *weights, int num, uint8_t *restrict out
) {
    uint16_t above = weights[0], below = weights[1];
    for (int j = 0; j < num; j++) {
        uint16_t sum = (uint16_t)(((uint32_t)a[j] * above >> 16) + ((uint32_t)b[j] * below >> 16) + 128 + 1);
        out[j] = (uint8_t)(sum >> 8);
    }
}

// Resize a box as below, pixel by pixel in floating point, by any factor.
static void resize_exactly(
    const uint8_t *pixels, int64_t stride, double top, double left, double box_height, double box_width,
    uint8_t *out, int64_t height, int64_t width
) {
    const double start[2] = {top, left}, end[2] = {top + box_height, left + box_width};
    const double step[2] = {box_height / (double)height, box_width / (double)width};
    for (int64_t i = 0; i < height * width; i++) {
        double low[2], high[2], total = 0, sums[3] = {0};
        for (int axis = 0; axis < 2; axis++) {
            double half = (step[axis] > 1 ? step[axis] : 1) / 2;
            double centre = start[axis] + ((double)(axis ? i % width : i / width) + 0.5) * step[axis];
            low[axis] = centre - half > start[axis] ? centre - half : start[axis];
            high[axis] = centre + half < end[axis] ? centre + half : end[axis];
        }
        for (int64_t y = (int64_t)low[0]; (double)y < high[0] - 1e-6; y++)
            for (int64_t x = (int64_t)low[1]; (double)x < high[1] - 1e-6; x++) {
                double share = share_of(low[0], high[0], y) * share_of(low[1], high[1], x);
                total += share;
                for (int c = 0; c < 3; c++) sums[c] += share * pixels[y * stride + 3 * x + c];
            }
        for (int c = 0; c < 3; c++) out[3 * i + c] = (uint8_t)(sums[c] / total + 0.5);
    }
}

// Resize a box to `out`, uint8 [height, width, 3].
//
// Returns 0, or 1 where memory lacks. The box lies in the image.
PUBLIC int fastpsl_area_resize(
    const uint8_t *pixels, int64_t stride, // the image, RGB, and its bytes per row
    double top, double left, double box_height, double box_width, // in pixels
    uint8_t *out, int64_t height, int64_t width
) {
    if (box_height > (double)(LARGEST_SHRINK * height) || box_width > (double)(LARGEST_SHRINK * width)) {
        resize_exactly(pixels, stride, top, left, box_height, box_width, out, height, width);
        return 0;
    }
    // Taps of rows and of columns, then the columns' weights for pairs or groups, two lines of sums, and a line of
    // values. Columns are made up to a multiple of four, the last ones without weight.
    size_t longest = (size_t)(height > width ? height : width) + 4, columns = ((size_t)width + 3) / 4 * 4;
    size_t line_values = ((size_t)box_width + 3 + MAX_TAPS + 2) * 3 + WINDOW;
    uint8_t *memory = malloc(longest * (2 * MAX_TAPS * sizeof(uint16_t) + 4 * sizeof(int32_t)) +
                             (columns * (MAX_TAPS + 2) * LANES + 2 * GROUP_LANES + line_values) * sizeof(uint16_t));
    if (!memory) return 1;
    int32_t *first_row = (void *)memory, *first_column = first_row + longest;
    int32_t *row_counts = first_column + longest, *column_counts = row_counts + longest;
    uint16_t(*row_weights)[MAX_TAPS] = (void *)(column_counts + longest);
    uint16_t(*column_weights)[MAX_TAPS] = row_weights + longest;
    make_taps(top, box_height, (int)height, first_row, row_weights, row_counts);
    int taps = make_taps(left, box_width, (int)width, first_column, column_weights, column_counts);
    int32_t start = first_column[0];
    int num = 3 * (first_column[width - 1] + column_counts[width - 1] - start);
    for (int64_t c = 0; c < (int64_t)columns; c++) {
        if (c >= width) memset(column_weights[c], 0, sizeof column_weights[c]);
        first_column[c] = c < width ? 3 * (first_column[c] - start) : 0;
    }
    uint16_t *pairs = (void *)(column_weights + longest), *weight = pairs;
    Groups groups = {.pixels = turbo_kind() == 2 ? group_pixels(box_width / (double)width) : 0};
    if (groups.pixels) { // a pixel has at most 9 taps, so the tables take less than the pairs
        groups.num = ((int)width + groups.pixels - 1) / groups.pixels;
        groups.first = column_counts, groups.tables = pairs;
        make_groups(&groups, first_column, column_weights, taps, (int)width);
    } else
        for (size_t c = 0; c < columns; c += 2)
            for (int t = 0; t < taps; t++)
                for (int i = 0; i < 2 * LANES; i++) *weight++ = column_weights[c + i / LANES][t];
    size_t room = LANES * columns + GROUP_LANES; // a group's sums may be written behind the last ones
    uint16_t *first_sums = pairs + columns * MAX_TAPS * LANES, *sums[2] = {first_sums, first_sums + room};
    uint16_t *line = sums[1] + room;
    memset(line + num, 0, (MAX_TAPS + 2) * 3 * sizeof(uint16_t)); // taps behind the last pixel have weight 0
    const uint8_t *source = pixels + 3 * (int64_t)start;
    int next = first_row[0]; // source row whose columns are to be mixed next
    for (int r = 0; r < height; r++, out += 3 * width) {
        int from = first_row[r], count = row_counts[r];
        if (box_height > height) {
            mix_rows(source + from * stride, (size_t)stride, count, row_weights[r], num, line);
            if (groups.pixels)
                mix_groups(line, &groups, taps, (int)width, out, NULL);
            else
                mix_columns_to_bytes(line, first_column, pairs, taps, (int)width, out);
            continue;
        }
        for (; next < from + count; next++) { // at most two rows at a time, so two lines are enough
            mix_rows(source + next * stride, 0, 1, row_weights[r], num, line);
            if (groups.pixels)
                mix_groups(line, &groups, taps, (int)width, NULL, sums[next & 1]);
            else
                mix_columns_to_sums(line, first_column, pairs, taps, (int)width, sums[next & 1]);
        }
        mix_lines(sums[from & 1], sums[(from + count - 1) & 1], row_weights[r], 3 * (int)width, out);
    }
    free(memory);
    return 0;
}

// ---- One plane ------------------------------------------------------------------------------------------

#define GROUP 8 // taps, a multiple of which every pixel has

#ifdef __SSE2__
INLINE __m128i products(const uint16_t *values, const int16_t *weights, int num_taps) {
    __m128i sum = _mm_setzero_si128();
    for (int t = 0; t < num_taps; t += GROUP) {
        __m128i group = _mm_srli_epi16(_mm_loadu_si128((const void *)(values + t)), 1);
        sum = _mm_add_epi32(sum, _mm_madd_epi16(group, _mm_loadu_si128((const void *)(weights + t))));
    }
    return sum;
}

INLINE void mix_four(
    const uint16_t *line, const int32_t *first, const int16_t *weights, int num_taps, uint8_t *out
) {
    __m128i sums[4], pairs[2];
    for (int i = 0; i < 4; i++) sums[i] = products(line + first[i], weights + i * num_taps, num_taps);
    for (int i = 0; i < 2; i++) {
        __m128i low = _mm_unpacklo_epi32(sums[2 * i], sums[2 * i + 1]);
        pairs[i] = _mm_add_epi32(low, _mm_unpackhi_epi32(sums[2 * i], sums[2 * i + 1]));
    }
    __m128i sum = _mm_add_epi32(_mm_unpacklo_epi64(pairs[0], pairs[1]), _mm_unpackhi_epi64(pairs[0], pairs[1]));
    sum = _mm_srli_epi32(_mm_add_epi32(sum, _mm_set1_epi32(1 << 21)), 22);
    sum = _mm_packs_epi32(sum, sum);
    int32_t four = _mm_cvtsi128_si32(_mm_packus_epi16(sum, sum));
    memcpy(out, &four, 4);
}
#else
INLINE void mix_four(
    const uint16_t *line, const int32_t *first, const int16_t *weights, int num_taps, uint8_t *out
) {
    for (int i = 0; i < 4; i++) {
        int32_t sum = 1 << 21;
        for (int t = 0; t < num_taps; t++) sum += (line[first[i] + t] >> 1) * weights[i * num_taps + t];
        out[i] = (uint8_t)(sum >> 22);
    }
}
#endif

// Mix the columns of a line to bytes, four at a time. A value has 7 bits behind the point, a weight 15.
FOR_EACH_CPU static void mix_plane(
    const uint16_t *line, const int32_t *first, const int16_t *weights, int num_taps, int size, uint8_t *out
) {
    for (int c = 0; c < size; c += 4, weights += 4 * num_taps)
        if (num_taps == GROUP) // so that the compiler unrolls the usual one
            mix_four(line, first + c, weights, GROUP, out + c);
        else
            mix_four(line, first + c, weights, num_taps, out + c);
}

int area_resize_plane(
    const uint8_t *plane, int64_t stride, double box_height, double box_width, uint8_t *out, int64_t out_stride,
    int64_t height, int64_t width
) {
    if (box_height > (double)(LARGEST_SHRINK * height) || box_width > (double)(LARGEST_SHRINK * width)) return 1;
    size_t longest = (size_t)(height > width ? height : width) + 3, padded = (MAX_TAPS / GROUP + 1) * GROUP;
    size_t line_values = (size_t)box_width + 2 + padded;
    uint8_t *memory = malloc(longest * (2 * MAX_TAPS * sizeof(uint16_t) + 4 * sizeof(int32_t)) +
                             (longest * padded + line_values) * sizeof(uint16_t));
    if (!memory) return 1;
    int32_t *first_row = (void *)memory, *first_column = first_row + longest;
    int32_t *row_counts = first_column + longest, *column_counts = row_counts + longest;
    uint16_t(*row_weights)[MAX_TAPS] = (void *)(column_counts + longest);
    uint16_t(*column_weights)[MAX_TAPS] = row_weights + longest;
    make_taps(0, box_height, (int)height, first_row, row_weights, row_counts);
    int taps = make_taps(0, box_width, (int)width, first_column, column_weights, column_counts);
    taps = (taps + GROUP - 1) / GROUP * GROUP;
    int16_t *weights = (void *)(column_weights + longest), *weight = weights;
    memset(first_column + width, 0, 3 * sizeof *first_column);
    memset(weights, 0, longest * (size_t)taps * sizeof *weights);
    for (int64_t c = 0; c < width; c++, weight += taps) {
        int left = 32767, largest = 0;
        for (int t = 0; t < column_counts[c]; t++) {
            weight[t] = (int16_t)(column_weights[c][t] / 2);
            left -= weight[t];
            if (weight[t] > weight[largest]) largest = t;
        }
        weight[largest] += (int16_t)left;
    }
    uint16_t *line = (uint16_t *)weights + longest * (size_t)taps;
    int num = first_column[width - 1] + column_counts[width - 1];
    memset(line + num, 0, padded * sizeof(uint16_t)); // taps behind the last pixel have weight 0
    for (int64_t r = 0; r < height; r++) {
        mix_rows(plane + first_row[r] * stride, (size_t)stride, row_counts[r], row_weights[r], num, line);
        mix_plane(line, first_column, weights, taps, (int)width, out + r * out_stride);
    }
    free(memory);
    return 0;
}
