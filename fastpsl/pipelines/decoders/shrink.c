// From a JPEG to a smaller one, plane by plane: luma and colours are resized as they are stored, without RGB.

#include "handle.h"

// A component's samples, and what of them is the image.
typedef struct {
    uint8_t *samples;
    size_t stride, rows;  // with room for padding
    double height, width; // of the image, in samples
} Plane;

// Give three planes their memory. Return 0 where it lacks.
static int place(Turbo *turbo, int use, Plane planes[3]) {
    size_t num_bytes = 0;
    for (int c = 0; c < 3; c++) num_bytes += planes[c].stride * planes[c].rows;
    uint8_t *samples = turbo_memory(turbo, use, (int64_t)num_bytes);
    for (int c = 0; samples && c < 3; c++) {
        planes[c].samples = samples;
        samples += planes[c].stride * planes[c].rows;
    }
    return samples != NULL;
}

// Return the plane of a component of the JPEG, which will be shrunk to `height` x `width` pixels.
static Plane large_plane(j_decompress_ptr info, int c, uint32_t height, uint32_t width) {
    jpeg_component_info *component = &info->comp_info[c];
    int across = component->h_samp_factor * SCALED_BLOCK(component); // samples of an MCU of all components
    int down = component->v_samp_factor * SCALED_BLOCK(component);
    uint32_t mcu_width = (uint32_t)(DCTSIZE * info->max_h_samp_factor);
    double share = (double)across / mcu_width, share_down = (double)down / (DCTSIZE * info->max_v_samp_factor);
    Plane plane = {.height = info->image_height * share_down, .width = info->image_width * share};
    if (c) { // the pixels that share a sample of colour may be one more than there are
        plane.height *= (height + 1) / 2 * 2 / (double)height;
        plane.width *= (width + 1) / 2 * 2 / (double)width;
    }
    // Whole MCUs, and what the last sample of colour sees beyond them.
    plane.stride = (size_t)((info->image_width + mcu_width - 1) / mcu_width) * (size_t)across;
    plane.stride += (size_t)(plane.width / width) + 2;
    plane.rows = (size_t)info->total_iMCU_rows * (size_t)down + (size_t)(plane.height / height) + 2;
    return plane;
}

// Return a plane, luma's or one of colour, of an image of `height` x `width` pixels.
static Plane small_plane(int c, uint32_t height, uint32_t width) {
    uint32_t rows = c ? (height + 1) / 2 : height, columns = c ? (width + 1) / 2 : width;
    uint32_t unit = c ? DCTSIZE : 2 * DCTSIZE;
    return (Plane){.stride = (columns + unit - 1) / unit * unit, .rows = rows, .height = rows, .width = columns};
}

// Repeat a plane's last column and row of the image to the end of its memory.
static void extend(const Plane *plane, size_t height, size_t width) {
    for (size_t r = 0; r < height; r++) {
        uint8_t *row = plane->samples + r * plane->stride;
        memset(row + width, row[width - 1], plane->stride - width);
    }
    for (size_t r = height; r < plane->rows; r++)
        memcpy(plane->samples + r * plane->stride, plane->samples + (height - 1) * plane->stride, plane->stride);
}

// Write the rows of each plane from `first` on to `rows`, as libjpeg takes `num` rows of MCUs at a time.
static void point_to_rows(const Plane planes[3], const size_t first[3], const int num[3], JSAMPROW rows[3][64]) {
    for (int c = 0; c < 3; c++)
        for (int r = 0; r < num[c]; r++) {
            size_t row = first[c] + (size_t)r, last = planes[c].rows - 1;
            rows[c][r] = planes[c].samples + (row < last ? row : last) * planes[c].stride;
        }
}

static void decode_planes(j_decompress_ptr info, const Plane planes[3]) {
    size_t first[3] = {0};
    int num[3];
    for (int c = 0; c < 3; c++) num[c] = info->comp_info[c].v_samp_factor * SCALED_BLOCK(&info->comp_info[c]);
    while (info->output_scanline < info->output_height) {
        JSAMPROW rows[3][64];
        JSAMPARRAY arrays[3] = {rows[0], rows[1], rows[2]};
        point_to_rows(planes, first, num, rows);
        jpeg_read_raw_data(info, arrays, (JDIMENSION)(info->max_v_samp_factor * MIN_SCALED_BLOCK(info)));
        for (int c = 0; c < 3; c++) first[c] += (size_t)num[c];
    }
    for (int c = 0; c < 3; c++)
        extend(&planes[c], info->comp_info[c].downsampled_height, info->comp_info[c].downsampled_width);
}

static uint64_t shrink(
    Turbo *turbo, const uint8_t *jpeg, uint64_t num_bytes, uint32_t denominator, uint32_t height, uint32_t width,
    int quality, uint8_t *out, uint64_t capacity
) {
    j_decompress_ptr info = &turbo->decompress;
    j_compress_ptr to = &turbo->compress;
    unsigned char *memory = out;
    unsigned long num_written = capacity;
    if (setjmp(turbo->escape)) {
        jpeg_abort_decompress(info);
        jpeg_abort_compress(to);
        return 0;
    }
    turbo_read_header(turbo, jpeg, num_bytes);
    if (info->jpeg_color_space != JCS_YCbCr || info->num_components != 3) ERREXIT(info, JERR_CONVERSION_NOTIMPL);
    info->raw_data_out = TRUE;
    info->dct_method = JDCT_ISLOW;
    info->scale_num = 1, info->scale_denom = denominator;
    jpeg_start_decompress(info);
    if (!turbo_take_over(turbo, 0, info->MCUs_per_row)) ERREXIT1(info, JERR_OUT_OF_MEMORY, 0);
    Plane planes[3], small[3];
    for (int c = 0; c < 3; c++) {
        planes[c] = large_plane(info, c, height, width);
        small[c] = small_plane(c, height, width);
    }
    if (!place(turbo, 1, planes) || !place(turbo, 0, small)) ERREXIT1(info, JERR_OUT_OF_MEMORY, 0);
    decode_planes(info, planes);
    jpeg_finish_decompress(info);
    for (int c = 0; c < 3; c++) {
        Plane *from = &planes[c], *plane = &small[c];
        if (area_resize_plane(
                from->samples, (int64_t)from->stride, from->height, from->width, plane->samples,
                (int64_t)plane->stride, (int64_t)plane->height, (int64_t)plane->width
            ))
            return 0;
        extend(plane, plane->rows, (size_t)plane->width);
    }
    jpeg_mem_dest(to, &memory, &num_written);
    turbo_set_encoder(to, height, width, JCS_YCbCr, quality);
    to->raw_data_in = TRUE;
    jpeg_start_compress(to, TRUE);
    const int num[3] = {2 * DCTSIZE, DCTSIZE, DCTSIZE};
    for (size_t row = 0; row < height; row += 2 * DCTSIZE) {
        const size_t first[3] = {row, row / 2, row / 2};
        JSAMPROW rows[3][64];
        JSAMPARRAY arrays[3] = {rows[0], rows[1], rows[2]};
        point_to_rows(small, first, num, rows);
        jpeg_write_raw_data(to, arrays, 2 * DCTSIZE);
    }
    jpeg_finish_compress(to);
    if (memory != out) {
        free(memory);
        return 0;
    }
    return num_written;
}

// Shrink a JPEG to a baseline one, 4:2:0, plane by plane: colours are neither enlarged nor converted.
//
// Returns the bytes in `out`, or 0 where the JPEG is not of luma and two colour planes, shrinks too far, or has what
// libjpeg finds an error in or warns of. `capacity` is as for encoding.
PUBLIC uint64_t fastpsl_turbo_shrink(
    Turbo *turbo, const uint8_t *jpeg, uint64_t num_bytes, uint32_t denominator, // decoded at 1 / denominator
    uint32_t height, uint32_t width, int quality, uint8_t *out, uint64_t capacity
) {
    num_bytes = shrink(turbo, jpeg, num_bytes, denominator, height, width, quality, out, capacity);
    turbo_free_large(turbo);
    return num_bytes;
}
