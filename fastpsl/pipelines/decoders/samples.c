// The loop of the turbo decoder: it reads, checks, decodes and crops a chunk of samples.
//
// The loader's threads run it in parallel, each with its own handle and memory. Where storage is slow there are more
// threads than cores: they read at once, and only as many as there are slots decode.

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "turbo.h"

// codes.py and data/dataset.py have these numbers, too.
enum { READING = -1, GOOD, SHORT_READ, NOT_JPEG, WRONG_SIZE, WRONG_COMPONENTS, CORRUPT, BAD_BOX, RAW_SIZE, BAD_MODE };
enum { CHANGED = 9, BAD_FILE, OTHER_VERSION };
#define ERROR(number) (READING - ((number) < 127 ? (number) : EIO)) // the code of the system's error
enum { AREA, ISOTROPIC, DIAGONAL };
enum { MODE_JPEG, MODE_RAW, MODE_FILE, MODE_COEFFICIENTS };

// A JPEG is decoded at 1/d (2, 4, 8) where every box is at least this many times d as large as its crop.
// ffcv.py says why.
#define SCALE_MARGIN 1.5

// Where the pixels begin in their memory, which malloc aligns to 16 bytes. libjpeg-turbo writes aligned rows past the
// caches, by non-temporal stores, and the resize, which reads them at once, would wait for them.
#define PIXELS_OFFSET 8

typedef struct {
    uint8_t *bytes;
    size_t capacity;
} Memory;

// The right of some threads to decode at once, with memory for the pixels of each.
typedef struct {
    sem_t free;
    pthread_mutex_t lock;
    int num_kept;
    Memory kept[];
} Slots;

typedef int32_t Box[5];    // top, left, height, width, resampling
typedef int32_t Window[4]; // top, left, height, width, in pixels of the upright image

// A batch's samples, as they are stored, and its views. libturbo.py has the same.
typedef struct {
    int64_t num, num_views;
    const int32_t *files;
    const int64_t *offsets, *num_bytes;
    const int32_t *heights, *widths;
    const uint8_t *modes, *orientations;
    const Box *boxes;         // [num_views][num]
    const int64_t *sizes;     // [num_views]
    uint8_t *const *outs;     // [num_views], uint8 [num, size, size, 3]
    int8_t *codes;            // written
    const char *const *paths; // of samples that have a file of their own, else NULL; NULL where none has
    Slots *slots;
    // Where the device crops the isotropic views: the part of each image that they see, which lies within their boxes
    // and margins. It is empty where they are cropped here. `windows` is NULL where all are.
    const Window *windows;
    const int64_t *window_offsets; // where each begins in `arena`, with its rows one after the other
    uint8_t *arena;                // written
} Batch;

// One sample and its views; view k's box is boxes[k * stride]. Boxes and sizes are those of the upright image.
typedef struct {
    int64_t num_views, stride, height, width;
    const Box *boxes;
    const int64_t *sizes;
    int orientation; // EXIF's, 1 to 8
} Request;

// What was decoded of an image, or all of it, upright: where it begins and its size, in pixels scaled by 1 / denominator.
typedef struct {
    const uint8_t *pixels;
    double top, left;
    int64_t rows, columns;
    int denominator;
} Part;

// What data/orientation.py does to make an image upright: transpose it, then reverse its rows, then its columns.
static int is_transposed(int orientation) { return orientation >= 5; }
static int has_rows_reversed(int orientation) { return orientation == 3 || orientation == 4 || orientation >= 7; }
static int has_columns_reversed(int orientation) {
    return orientation == 2 || orientation == 3 || orientation == 6 || orientation == 7;
}

static void find_stored_size(const Request *request, int64_t *height, int64_t *width) {
    int swap = is_transposed(request->orientation);
    *height = swap ? request->width : request->height, *width = swap ? request->height : request->width;
}

// Read up to `num_bytes`; returns how many were read, fewer at the end of the file, or -1 with
// the cause in errno.
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

// Return the code of an error with a file of its own: of the file, or of the system. data/dataset.py has the same.
static int code_of(int number) {
    switch (number) {
    case ENOENT: case ENOTDIR: case EACCES: case EPERM: case ELOOP: case ENAMETOOLONG: case ENXIO: case EIO: case ESTALE:
        return CHANGED;
    }
    return ERROR(number);
}

// Read a file of that size at once, and close it. One that is gone or has another size has changed since it was listed.
static int read_file(const char *path, int64_t num_bytes, uint8_t *out) {
    int file = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK); // a pipe in its place would wait for a writer
    if (file < 0) return code_of(errno);
    struct stat status;
    int code = CHANGED;
    if (fstat(file, &status)) code = code_of(errno);
    else if (S_ISREG(status.st_mode) && status.st_size == num_bytes) {
        int64_t num_read = read_at(file, 0, num_bytes, out);
        code = num_read < 0 ? code_of(errno) : num_read == num_bytes ? GOOD : CHANGED;
    }
    close(file);
    return code;
}

static int64_t big_endian_16(const uint8_t *bytes) { return bytes[0] << 8 | bytes[1]; }

// Check a JPEG up to its frame header (ITU-T T.81, Annex B), as jpeg.py does.
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

// Read sample i, and check it. `stored` gets its bytes, which last until the next call with this handle.
static int read_checked(Turbo *turbo, const Batch *batch, int64_t i, const Request *request, uint8_t **stored) {
    int64_t num_bytes = batch->num_bytes[i];
    int mode = batch->modes[i];
    const char *path = batch->paths ? batch->paths[i] : NULL;
    if (mode == MODE_FILE && path) return BAD_FILE; // which turbo.py leaves to Pillow
    if (mode != MODE_JPEG && mode != MODE_RAW && mode != MODE_COEFFICIENTS) return BAD_MODE;
    if (mode == MODE_RAW && num_bytes != request->height * request->width * 3) return RAW_SIZE;
    *stored = turbo_memory(turbo, 0, num_bytes + PACKED_PADDING);
    if (!*stored) return ERROR(ENOMEM);
    if (mode == MODE_COEFFICIENTS) memset(*stored + num_bytes, 0, PACKED_PADDING);
    if (path) {
        int code = read_file(path, num_bytes, *stored);
        if (code != GOOD) return code;
    } else {
        int64_t num_read = read_at(batch->files[i], batch->offsets[i], num_bytes, *stored);
        if (num_read != num_bytes) return num_read < 0 ? ERROR(errno) : SHORT_READ;
    }
    if (mode == MODE_RAW) return GOOD;
    int64_t height, width;
    find_stored_size(request, &height, &width);
    int code = check_header(*stored, num_bytes, height, width);
    return mode == MODE_COEFFICIENTS && code == NOT_JPEG ? CORRUPT : code;
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

// Write a view's box, in pixels of the image as it is stored.
static void find_stored_box(const Request *request, int64_t k, Box stored) {
    memcpy(stored, request->boxes[k * request->stride], sizeof(Box));
    if (has_rows_reversed(request->orientation)) stored[0] = (int32_t)request->height - stored[0] - stored[2];
    if (has_columns_reversed(request->orientation)) stored[1] = (int32_t)request->width - stored[1] - stored[3];
    if (!is_transposed(request->orientation)) return;
    for (int pair = 0; pair < 4; pair += 2) {
        int32_t vertical = stored[pair];
        stored[pair] = stored[pair + 1], stored[pair + 1] = vertical;
    }
}

// Write the smallest region of the stored image with all boxes: top, left, height, width in scaled pixels.
static void find_region(const Request *request, int denominator, int64_t region[4]) {
    int64_t first[2] = {INT64_MAX, INT64_MAX}, stop[2] = {0, 0};
    for (int64_t k = 0; k < request->num_views; k++) {
        Box box;
        find_stored_box(request, k, box);
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

// Crop a box to `out`, uint8 [size, size, 3].
static int crop(const Part *part, const int32_t *box, uint8_t *out, int64_t size) {
    double scale = part->denominator, top = box[0] / scale - part->top, left = box[1] / scale - part->left;
    if (box[4] != AREA)
        return fastpsl_isotropic_resize(
            part->pixels, part->rows, part->columns, (int64_t)top, (int64_t)left, box[2], box[4] == DIAGONAL, out,
            size
        );
    return fastpsl_area_resize(
        part->pixels, 3 * part->columns, top, left, box[2] / scale, box[3] / scale, out, size, size
    );
}

// Copy a window to `out`, its rows one after the other.
static void keep_window(const Part *part, const int32_t *window, uint8_t *out) {
    int64_t stride = 3 * part->columns, num_bytes = (int64_t)window[3] * 3;
    const uint8_t *pixels = part->pixels + (window[0] - (int64_t)part->top) * stride;
    pixels += (window[1] - (int64_t)part->left) * 3;
    for (int64_t row = 0; row < window[2]; row++)
        memcpy(out + row * num_bytes, pixels + row * stride, (size_t)num_bytes);
}

// Crop all views of sample i, but those that the device crops from its window.
static int crop_views(const Batch *batch, int64_t i, const Part *part) {
    int has_window = batch->windows && batch->windows[i][2] > 0;
    if (has_window) keep_window(part, batch->windows[i], batch->arena + batch->window_offsets[i]);
    for (int64_t k = 0; k < batch->num_views; k++) {
        if (has_window && batch->boxes[k * batch->num + i][4] != AREA) continue;
        int64_t size = batch->sizes[k];
        if (crop(part, batch->boxes[k * batch->num + i], batch->outs[k] + i * size * size * 3, size))
            return ERROR(ENOMEM);
    }
    return GOOD;
}

// Turn a part of a stored image upright, to `out`.
static void turn(Part *part, const Request *request, uint8_t *out) {
    int swap = is_transposed(request->orientation);
    int64_t rows = swap ? part->columns : part->rows, columns = swap ? part->rows : part->columns;
    double top = swap ? part->left : part->top, left = swap ? part->top : part->left;
    int64_t down = swap ? 3 : 3 * part->columns, across = swap ? 3 * part->columns : 3; // steps in `pixels`
    const uint8_t *pixels = part->pixels;
    if (has_rows_reversed(request->orientation)) {
        pixels += (rows - 1) * down, down = -down;
        top = (double)request->height / part->denominator - top - (double)rows;
    }
    if (has_columns_reversed(request->orientation)) {
        pixels += (columns - 1) * across, across = -across;
        left = (double)request->width / part->denominator - left - (double)columns;
    }
    *part = (Part){out, top, left, rows, columns, part->denominator};
    for (int64_t y = 0; y < rows; y++)
        for (int64_t x = 0; x < columns; x++, out += 3) memcpy(out, pixels + y * down + x * across, 3);
}

// Wait for a slot, and give it back: for what is decoded elsewhere.
PUBLIC void fastpsl_slots_take(Slots *slots) {
    while (sem_wait(&slots->free)) { // interrupted by a signal
    }
}

PUBLIC void fastpsl_slots_give(Slots *slots) { sem_post(&slots->free); }

static Memory take_slot(Slots *slots) {
    fastpsl_slots_take(slots);
    pthread_mutex_lock(&slots->lock);
    Memory memory = slots->num_kept ? slots->kept[--slots->num_kept] : (Memory){NULL, 0};
    pthread_mutex_unlock(&slots->lock);
    return memory;
}

static void give_slot(Slots *slots, Memory memory) {
    if (memory.capacity > LARGE_BYTES) {
        free(memory.bytes);
        memory = (Memory){NULL, 0};
    }
    pthread_mutex_lock(&slots->lock);
    slots->kept[slots->num_kept++] = memory;
    pthread_mutex_unlock(&slots->lock);
    fastpsl_slots_give(slots);
}

// Decode what the views of sample i need, and crop them.
static int decode_views(
    Turbo *turbo, const Batch *batch, int64_t i, const Request *request, const uint8_t *stored, Memory *memory
) {
    Part part = {stored, 0, 0, request->height, request->width, 1};
    if (batch->modes[i] != MODE_RAW) {
        int64_t region[4], placed[4], height, width;
        find_stored_size(request, &height, &width);
        int denominator = find_denominator(request);
        find_region(request, denominator, region);
        if (!turbo_reserve(&memory->bytes, &memory->capacity, (size_t)(height * width * 3 + PIXELS_OFFSET)))
            return ERROR(ENOMEM);
        uint8_t *pixels = memory->bytes + PIXELS_OFFSET;
        int status = fastpsl_turbo_decode(
            turbo, stored, (uint64_t)batch->num_bytes[i], (uint32_t)height, (uint32_t)width, (uint32_t)denominator, 1,
            batch->modes[i] == MODE_COEFFICIENTS, region, pixels, placed
        );
        if (status) return status == TURBO_OTHER_VERSION ? OTHER_VERSION : CORRUPT;
        part = (Part){pixels, (double)placed[0], (double)placed[1], placed[2], placed[3], denominator};
    }
    if (request->orientation > 1) {
        uint8_t *upright = turbo_memory(turbo, 0, part.rows * part.columns * 3); // in the place of `stored`
        if (!upright) return ERROR(ENOMEM);
        turn(&part, request, upright);
    }
    return crop_views(batch, i, &part);
}

static int64_t now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000000000LL + now.tv_nsec;
}

// Decode a sample, crop its views, and return its code. The times of reading and decoding are added to `spent_ns`.
static int decode_sample(Turbo *turbo, const Batch *batch, int64_t i, int64_t spent_ns[2]) {
    int64_t height = batch->heights[i], width = batch->widths[i];
    Request request = {batch->num_views, batch->num, height, width, batch->boxes + i, batch->sizes, batch->orientations[i]};
    if (!are_inside(&request)) return BAD_BOX;
    uint8_t *stored = NULL;
    batch->codes[i] = READING; // what a wait that is too long is told of
    int64_t began = now_ns();
    int code = read_checked(turbo, batch, i, &request, &stored);
    spent_ns[0] += now_ns() - began;
    batch->codes[i] = (int8_t)code;
    if (code == GOOD) {
        Memory memory = take_slot(batch->slots);
        began = now_ns();
        code = decode_views(turbo, batch, i, &request, stored, &memory);
        spent_ns[1] += now_ns() - began;
        give_slot(batch->slots, memory);
    }
    turbo_free_large(turbo);
    return code;
}

// Decode samples `start` to `stop` of a batch, and crop their views. `spent_ns` is written: the times of reading and
// of decoding.
PUBLIC void fastpsl_decode_samples(Turbo *turbo, const Batch *batch, int64_t start, int64_t stop, int64_t spent_ns[2]) {
    spent_ns[0] = spent_ns[1] = 0;
    for (int64_t i = start; i < stop; i++) batch->codes[i] = (int8_t)decode_sample(turbo, batch, i, spent_ns);
}

// Crop the views of sample i, whose upright image is decoded, and return its code.
PUBLIC int fastpsl_crop_image(const Batch *batch, int64_t i, const uint8_t *pixels) {
    int64_t height = batch->heights[i], width = batch->widths[i];
    Request request = {batch->num_views, batch->num, height, width, batch->boxes + i, batch->sizes, 1};
    Part part = {pixels, 0, 0, height, width, 1};
    return are_inside(&request) ? crop_views(batch, i, &part) : BAD_BOX;
}

// Return `num` slots, or NULL.
PUBLIC Slots *fastpsl_slots_open(uint32_t num) {
    Slots *slots = calloc(1, sizeof(Slots) + num * sizeof(Memory));
    if (!slots) return NULL;
    sem_init(&slots->free, 0, num);
    pthread_mutex_init(&slots->lock, NULL);
    return slots;
}

PUBLIC void fastpsl_slots_close(Slots *slots) {
    for (int k = 0; k < slots->num_kept; k++) free(slots->kept[k].bytes);
    pthread_mutex_destroy(&slots->lock);
    sem_destroy(&slots->free);
    free(slots);
}
