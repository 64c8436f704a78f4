// The loop of the turbo decoder: it reads, checks, decodes and crops a chunk of samples.
//
// It holds no lock. The loader's threads run it in parallel, each with its own handle and memory.

#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "turbo.h"

// codes.py and data/dataset.py have these numbers, too.
enum { GOOD, SHORT_READ, NOT_JPEG, WRONG_SIZE, WRONG_COMPONENTS, CORRUPT, BAD_BOX, RAW_SIZE, BAD_MODE };
enum { AREA, ISOTROPIC, DIAGONAL };
enum { MODE_JPEG, MODE_RAW };

// A JPEG is decoded at 1/d (2, 4, 8) where every box is at least this many times d as large as its crop.
// ffcv.py says why.
#define SCALE_MARGIN 1.5

// Where the pixels begin in their memory, which malloc aligns to 16 bytes. libjpeg-turbo writes aligned rows past the
// caches, by non-temporal stores, and the resize, which reads them at once, would wait for them.
#define PIXELS_OFFSET 8

typedef int32_t Box[5];    // top, left, height, width, resampling
typedef int32_t Window[4]; // top, left, height, width, in pixels of the upright image

// A batch's samples, as they are stored, and its views. libturbo.py has the same.
typedef struct {
    int64_t num, num_views;
    const int32_t *files;
    const int64_t *offsets, *num_bytes;
    const int32_t *heights, *widths;
    const uint8_t *modes;
    const Box *boxes;     // [num_views][num]
    const int64_t *sizes; // [num_views]
    uint8_t *const *outs; // [num_views], uint8 [num, size, size, 3]
    int8_t *codes;        // written
    // Where the device crops the isotropic views: the part of each image that they see, which lies within their boxes
    // and margins. It is empty where they are cropped here. `windows` is NULL where all are.
    const Window *windows;
    const int64_t *window_offsets; // where each begins in `arena`, with its rows one after the other
    uint8_t *arena;                // written
} Batch;

// One sample and its views; view k's box is boxes[k * stride].
typedef struct {
    int64_t num_views, stride, height, width;
    const Box *boxes;
    const int64_t *sizes;
} Request;

// Read up to `num_bytes`; returns how many were read, fewer at the end of the file, or -1.
static int64_t read_at(int file, int64_t offset, int64_t num_bytes, uint8_t *out) {
    int64_t num_read = 0;
    while (num_read < num_bytes) {
        ssize_t count = pread(file, out + num_read, (size_t)(num_bytes - num_read), offset + num_read);
        if (count < 0 && errno == EINTR) continue;
        if (count < 0) return -1;
        if (count == 0) break;
        num_read += count;
    }
    return num_read;
}

static int64_t big_endian_16(const uint8_t *bytes) { return bytes[0] << 8 | bytes[1]; }

// Check a JPEG up to its frame header (ITU-T T.81, Annex B), as jpeg_header.py does.
static int check_header(const uint8_t *jpeg, int64_t num_bytes, int64_t height, int64_t width) {
    if (num_bytes < 4 || jpeg[0] != 0xFF || jpeg[1] != 0xD8) return NOT_JPEG;
    for (int64_t at = 2; at + 4 <= num_bytes;) {
        uint8_t marker = jpeg[at + 1];
        if (jpeg[at] != 0xFF) return NOT_JPEG;
        if (marker == 0xFF) { // fill byte
            at++;
            continue;
        }
        if (marker <= 0x01 || (marker >= 0xD0 && marker <= 0xDA)) return NOT_JPEG; // the scan before any frame
        int64_t length = big_endian_16(jpeg + at + 2);
        if (length < 2 || at + 2 + length > num_bytes) return NOT_JPEG;
        if (marker >= 0xC0 && marker <= 0xCF && marker != 0xC4 && marker != 0xC8 && marker != 0xCC) {
            if (marker > 0xC2 || length < 8) return NOT_JPEG;
            int64_t components = jpeg[at + 9], rows = big_endian_16(jpeg + at + 5);
            int64_t columns = big_endian_16(jpeg + at + 7);
            if (!rows || !columns || length != 8 + 3 * components) return NOT_JPEG;
            if (rows != height || columns != width) return WRONG_SIZE;
            return components == 1 || components == 3 ? GOOD : WRONG_COMPONENTS;
        }
        at += 2 + length;
    }
    return NOT_JPEG;
}

// Read a sample into `encoded`, or into `pixels` where it is raw, and check it.
static int read_checked(
    int file, int64_t offset, int64_t num_bytes, const Request *request, int mode, uint8_t *encoded, uint8_t *pixels
) {
    if (mode == MODE_RAW) {
        if (num_bytes != request->height * request->width * 3) return RAW_SIZE;
        return read_at(file, offset, num_bytes, pixels) == num_bytes ? GOOD : SHORT_READ;
    }
    if (mode != MODE_JPEG) return BAD_MODE;
    if (read_at(file, offset, num_bytes, encoded) != num_bytes) return SHORT_READ;
    return check_header(encoded, num_bytes, request->height, request->width);
}

static int64_t margin_of(const int32_t *box, int64_t size) {
    return box[4] == AREA ? 0 : isotropic_margin(box[2], size);
}

// Return how far the pixels of a box reach beyond it: for an upright window by its kernel alone.
static int64_t reach_of(const int32_t *box, int64_t size) {
    int64_t margin = margin_of(box, size);
    if (box[4] != ISOTROPIC) return margin;
    int64_t reach = isotropic_reach(box[2], size) + 1; // a tap of weight 0 may lie one pixel further out
    return reach < margin ? reach : margin;
}

// Return whether all boxes lie in the image, with their kernels' margins.
static int are_inside(const Request *request) {
    for (int64_t k = 0; k < request->num_views; k++) {
        const int32_t *box = request->boxes[k * request->stride];
        int64_t top = box[0], left = box[1], height = box[2], width = box[3];
        if (height < 1 || width < 1 || (box[4] != AREA && height != width)) return 0;
        int64_t margin = margin_of(box, request->sizes[k]);
        if (top < margin || left < margin) return 0;
        if (top + height + margin > request->height || left + width + margin > request->width) return 0;
    }
    return 1;
}

// Return by what factor (1, 2, 4 or 8) the image may be decoded smaller.
static int find_denominator(const Request *request) {
    int denominator = 8;
    for (int64_t k = 0; k < request->num_views; k++) {
        const int32_t *box = request->boxes[k * request->stride];
        if (box[4] != AREA) return 1; // it must not show the image's axes as libjpeg's scaling does
        int shorter = box[2] < box[3] ? box[2] : box[3];
        while (denominator > 1 && shorter < SCALE_MARGIN * denominator * (double)request->sizes[k]) denominator /= 2;
    }
    return denominator;
}

// Write the smallest region with all boxes: top, left, height, width in scaled pixels.
static void find_region(const Request *request, int denominator, int64_t region[4]) {
    int64_t first[2] = {INT64_MAX, INT64_MAX}, stop[2] = {0, 0};
    for (int64_t k = 0; k < request->num_views; k++) {
        const int32_t *box = request->boxes[k * request->stride];
        int64_t margin = reach_of(box, request->sizes[k]);
        for (int axis = 0; axis < 2; axis++) {
            int64_t low = (box[axis] - margin) / denominator;
            int64_t high = (box[axis] + box[axis + 2] + margin + denominator - 1) / denominator;
            if (low < first[axis]) first[axis] = low;
            if (high > stop[axis]) stop[axis] = high;
        }
    }
    for (int axis = 0; axis < 2; axis++) region[axis] = first[axis], region[axis + 2] = stop[axis] - first[axis];
}

// Crop a box of an image, of which `pixels` has the part `placed`: top, left, height, width in scaled pixels.
static int crop(
    const uint8_t *pixels, const int64_t placed[4], const int32_t *box, int denominator, uint8_t *out, int64_t size
) {
    int64_t rows = placed[2], columns = placed[3];
    if (box[4] != AREA)
        return fastpsl_isotropic_resize(
            pixels, rows, columns, box[0] - placed[0], box[1] - placed[1], box[2], box[4] == DIAGONAL, out, size
        );
    double scale = denominator, top = box[0] / scale - (double)placed[0], left = box[1] / scale - (double)placed[1];
    return fastpsl_area_resize(
        pixels, 3 * columns, top, left, box[2] / scale, box[3] / scale, out, size, size
    );
}

// Return whether the device crops the isotropic views of sample i.
static int has_window(const Batch *batch, int64_t i) { return batch->windows && batch->windows[i][2] > 0; }

// Copy a window to `out`, upright, from the part `placed` of an image, which has all of it.
static void keep_window(const uint8_t *pixels, const int64_t placed[4], const int32_t *window, uint8_t *out) {
    int64_t stride = placed[3] * 3, num_bytes = (int64_t)window[3] * 3;
    pixels += (window[0] - placed[0]) * stride + (window[1] - placed[1]) * 3;
    for (int64_t row = 0; row < window[2]; row++)
        memcpy(out + row * num_bytes, pixels + row * stride, (size_t)num_bytes);
}

// Decode a sample, crop its views, and return its code.
static int decode_sample(Turbo *turbo, const Batch *batch, int64_t i) {
    int64_t num = batch->num, height = batch->heights[i], width = batch->widths[i], num_bytes = batch->num_bytes[i];
    Request request = {batch->num_views, num, height, width, batch->boxes + i, batch->sizes};
    if (!are_inside(&request)) return BAD_BOX;
    uint8_t *encoded = turbo_memory(turbo, 0, num_bytes);
    uint8_t *pixels = turbo_memory(turbo, 1, height * width * 3 + PIXELS_OFFSET);
    if (!encoded || !pixels) return CORRUPT;
    pixels += PIXELS_OFFSET;
    int mode = batch->modes[i], denominator = 1;
    int code = read_checked(batch->files[i], batch->offsets[i], num_bytes, &request, mode, encoded, pixels);
    if (code != GOOD) return code;
    int64_t placed[4] = {0, 0, height, width};
    if (mode == MODE_JPEG) {
        int64_t region[4];
        denominator = find_denominator(&request);
        find_region(&request, denominator, region);
        if (fastpsl_turbo_decode(
                turbo, encoded, (uint64_t)num_bytes, (uint32_t)height, (uint32_t)width, (uint32_t)denominator, 1,
                region, pixels, placed
            ))
            return CORRUPT;
    }
    if (has_window(batch, i)) keep_window(pixels, placed, batch->windows[i], batch->arena + batch->window_offsets[i]);
    for (int64_t k = 0; k < batch->num_views; k++) {
        if (has_window(batch, i) && batch->boxes[k * num + i][4] != AREA) continue;
        int64_t size = batch->sizes[k];
        uint8_t *out = batch->outs[k] + i * size * size * 3;
        if (crop(pixels, placed, batch->boxes[k * num + i], denominator, out, size)) return CORRUPT;
    }
    return GOOD;
}

// Decode samples `start` to `stop` of a batch, and crop their views.
PUBLIC void fastpsl_decode_samples(Turbo *turbo, const Batch *batch, int64_t start, int64_t stop) {
    for (int64_t i = start; i < stop; i++) batch->codes[i] = (int8_t)decode_sample(turbo, batch, i);
}
