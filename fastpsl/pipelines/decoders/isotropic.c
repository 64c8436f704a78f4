// Windows upright or turned by 45 degrees; kernels/isotropic.py has the definition, and says why.
//
// Sums are added in an order that the code fixes, and no product is fused with a sum, so all CPUs compute the
// same bits.

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "turbo.h"

#define LUMA_SIGMA 1.0 // px of the source
#define COLOUR_SIGMA 3.0
#define SHRINK_SIGMA 0.5 // px of the view
#define REACH_SIGMAS 4.25
#define RED 0.299f
#define GREEN 0.587f
#define BLUE 0.114f
#define HALF (0.5f + 0x1p-13f)
#define LANES 8 // the number of taps is made up to a multiple of it, by weights of 0

typedef float Lanes __attribute__((vector_size(4 * LANES)));

// The taps of a line of points for one Gaussian.
typedef struct {
    int num, stride;  // taps, and floats from one point's weights to the next one's
    int64_t *first;   // each point's first source pixel
    float *weights;   // which sum to 1
} Taps;

static double larger(double a, double b) { return a > b ? a : b; }

static double reach(int64_t side, int64_t size) {
    return REACH_SIGMAS * larger(COLOUR_SIGMA, SHRINK_SIGMA * (double)side / (double)size);
}

// Return the source pixels that an upright window needs around its square, for the kernel's reach.
int64_t isotropic_reach(int64_t side, int64_t size) { return (int64_t)ceil(reach(side, size)); }

// Return the source pixels that both windows need around an upright square, the kernel's reach included.
int64_t isotropic_margin(int64_t side, int64_t size) {
    return (int64_t)ceil((double)side * (sqrt(0.5) - 0.5) + reach(side, size));
}

static int num_taps(double sigma, int64_t rows, int64_t columns) {
    int64_t num = (int64_t)(2 * REACH_SIGMAS * sigma) + 1;
    if (num > rows) num = rows;
    return (int)(num > columns ? columns : num);
}

// Fill in the taps of `num` points around `centre`.
static void make_taps(double centre, double pitch, double sigma, int64_t limit, int64_t num, Taps *taps) {
    double between = 1 / sigma, ratio_of_ratios = exp(-between * between);
    for (int64_t i = 0; i < num; i++) {
        double point = centre + ((double)i - (double)(num - 1) / 2) * pitch - 0.5; // pixel k lies at k + 0.5
        int64_t first = (int64_t)ceil(point - REACH_SIGMAS * sigma);
        if (first < 0) first = 0;
        if (first > limit - taps->num) first = limit - taps->num;
        taps->first[i] = first;
        // exp(-d * d / 2) at equal distances by its recurrence, because a crop has 30,000 of them.
        double distance = ((double)first - point) / sigma, weight = exp(-0.5 * distance * distance);
        double ratio = exp(-distance * between - 0.5 * between * between), total = 0;
        float *weights = taps->weights + i * taps->stride;
        for (int k = 0; k < taps->stride; k++) {
            int is_within = k < taps->num && fabs(distance + k * between) <= REACH_SIGMAS;
            weights[k] = is_within ? (float)weight : 0;
            total += weights[k];
            weight *= ratio;
            ratio *= ratio_of_ratios;
        }
        for (int k = 0; k < taps->num; k++) weights[k] = (float)(weights[k] / total);
    }
}

// Convert bytes of RGB to luma, blue - luma and red - luma.
FOR_EACH_CPU static void convert(
    const uint8_t *restrict pixels, int64_t num, float *restrict luma, float *restrict blue, float *restrict red
) {
    for (int64_t j = 0; j < num; j++) {
        float r = pixels[3 * j], g = pixels[3 * j + 1], b = pixels[3 * j + 2];
        float y = RED * r + GREEN * g + BLUE * b;
        luma[j] = y, blue[j] = b - y, red[j] = r - y;
    }
}

// Write the weighted sum of consecutive rows to line[start:stop]. Row i stands at i modulo `num_rows` of the ring.
FOR_EACH_CPU static void mix_rows(
    const float *ring, int64_t num_rows, int64_t width, int64_t first, const float *weights, int num_taps,
    int64_t start, int64_t stop, float *restrict line
) {
    memset(line + start, 0, (size_t)(stop - start) * sizeof(float));
    int k = 0;
    for (; k + 3 <= num_taps; k += 3) {
        const float *a = ring + (first + k) % num_rows * width, *b = ring + (first + k + 1) % num_rows * width;
        const float *c = ring + (first + k + 2) % num_rows * width;
        float w0 = weights[k], w1 = weights[k + 1], w2 = weights[k + 2];
        for (int64_t j = start; j < stop; j++) line[j] += w0 * a[j] + w1 * b[j] + w2 * c[j];
    }
    for (; k < num_taps; k++) {
        const float *a = ring + (first + k) % num_rows * width;
        float w0 = weights[k];
        for (int64_t j = start; j < stop; j++) line[j] += w0 * a[j];
    }
}

INLINE float dot(const float *line, const float *weights, int num) {
    Lanes sum = {0};
    for (int k = 0; k < num; k += LANES) {
        Lanes values, factors;
        memcpy(&values, line + k, sizeof values);
        memcpy(&factors, weights + k, sizeof factors);
        sum += values * factors;
    }
    return ((sum[0] + sum[4]) + (sum[1] + sum[5])) + ((sum[2] + sum[6]) + (sum[3] + sum[7]));
}

INLINE uint8_t byte(float value) {
    value += HALF;
    return (uint8_t)(value < 0 ? 0 : value > 255 ? 255 : value);
}

// Write the pixels of one line of points: all of them, or every second one of a turned window.
FOR_EACH_CPU static void mix_columns(
    const float *luma, const float *blue, const float *red, const Taps *taps, const Taps *colour, int64_t line,
    int64_t low, int64_t high, int is_diagonal, int64_t size, uint8_t *out
) {
    for (int64_t column = low; column <= high; column += is_diagonal ? 2 : 1) {
        int64_t r = is_diagonal ? (line - column + size - 1) / 2 : line, c = is_diagonal ? line - r : column;
        const float *weights = colour->weights + column * colour->stride;
        int64_t at = colour->first[column];
        float y_here = dot(luma + taps->first[column], taps->weights + column * taps->stride, taps->stride);
        float b_here = dot(blue + at, weights, colour->stride), r_here = dot(red + at, weights, colour->stride);
        uint8_t *pixel = out + (r * size + c) * 3;
        pixel[0] = byte(y_here + r_here);
        pixel[1] = byte(y_here - (RED * r_here + BLUE * b_here) / GREEN);
        pixel[2] = byte(y_here + b_here);
    }
}

// Resample one window to `out`, uint8 [size, size, 3].
//
// Returns 0, or 1 where memory lacks. The upright square with its margin lies in the image.
PUBLIC int fastpsl_isotropic_resize(
    const uint8_t *pixels, int64_t rows, int64_t columns, // the image, RGB
    int64_t top, int64_t left, int64_t side,              // an upright square; the window has the same centre
    int is_diagonal, uint8_t *out, int64_t size
) {
    double step = (double)side / (double)size, pitch = is_diagonal ? step * sqrt(0.5) : step;
    double y = (double)top + (double)side / 2, x = (double)left + (double)side / 2;
    double sigma = larger(LUMA_SIGMA, SHRINK_SIGMA * step), colour_sigma = larger(COLOUR_SIGMA, SHRINK_SIGMA * step);
    int64_t num = is_diagonal ? 2 * size - 1 : size;
    Taps taps[4]; // luma's rows and columns, colour's rows and columns
    size_t num_weights = 0;
    for (int i = 0; i < 4; i++) {
        taps[i].num = num_taps(i < 2 ? sigma : colour_sigma, rows, columns);
        taps[i].stride = (taps[i].num + LANES - 1) / LANES * LANES;
        num_weights += (size_t)(num * taps[i].stride);
    }
    int64_t *firsts = malloc(4 * (size_t)num * sizeof(int64_t));
    float *weights = malloc(num_weights * sizeof(float)), *ring = NULL;
    if (firsts && weights) {
        float *next = weights;
        for (int i = 0; i < 4; next += num * taps[i++].stride) {
            taps[i].first = firsts + i * num, taps[i].weights = next;
            make_taps(i % 2 ? x : y, pitch, i < 2 ? sigma : colour_sigma, i % 2 ? columns : rows, num, &taps[i]);
        }
    }
    const Taps *luma_rows = &taps[0], *luma_columns = &taps[1], *colour_rows = &taps[2], *colour_columns = &taps[3];
    // The ring holds the last source rows that are still needed, as planes. Its columns count from the first
    // one needed. Behind it lie three lines, which taps of weight 0 may read past the end of.
    int64_t start = 0, width = 0, ring_rows = colour_rows->num;
    if (firsts && weights) {
        start = colour_columns->first[0];
        for (int64_t k = 0; k < num; k++) luma_columns->first[k] -= start, colour_columns->first[k] -= start;
        width = colour_columns->first[num - 1] + colour_columns->num;
        ring = calloc((size_t)(3 * ring_rows * width + 3 * (width + LANES)), sizeof(float));
    }
    if (!ring) {
        free(firsts), free(weights);
        return 1;
    }
    int64_t plane = ring_rows * width;
    float *luma = ring + 3 * plane, *blue = luma + width + LANES, *red = blue + width + LANES;
    int64_t next_row = colour_rows->first[0];
    for (int64_t line = 0; line < num; line++) {
        for (; next_row < colour_rows->first[line] + ring_rows; next_row++) {
            float *row = ring + next_row % ring_rows * width;
            convert(pixels + 3 * (next_row * columns + start), width, row, row + plane, row + 2 * plane);
        }
        // An upright window needs all points of the line, a turned one every second point inside its diamond.
        int64_t low = is_diagonal ? llabs(line - size + 1) : 0, high = num - 1 - low;
        mix_rows(
            ring, ring_rows, width, luma_rows->first[line], luma_rows->weights + line * luma_rows->stride,
            luma_rows->num, luma_columns->first[low], luma_columns->first[high] + luma_columns->num, luma
        );
        for (int i = 1; i < 3; i++)
            mix_rows(
                ring + i * plane, ring_rows, width, colour_rows->first[line],
                colour_rows->weights + line * colour_rows->stride, colour_rows->num, colour_columns->first[low],
                colour_columns->first[high] + colour_columns->num, i == 1 ? blue : red
            );
        mix_columns(luma, blue, red, luma_columns, colour_columns, line, low, high, is_diagonal, size, out);
    }
    free(firsts), free(weights), free(ring);
    return 0;
}
