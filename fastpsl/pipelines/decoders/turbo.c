// Decoding of a part of a JPEG, and encoding, on libjpeg-turbo. The bindings are in libturbo.py.
//
// A crop needs a part of its image only. The rows below it are never decoded; those above it and the columns
// beside it go through the entropy decoder alone. What is decoded equals a full decode with the accurate DCT
// and smooth ("fancy") upsampling bit for bit.

#include "handle.h"

// A progressive JPEG's scans each take as long as the image is large, however few bytes they have.
#define MAX_SCANS 500 // jpeg.py has the same

static void escape(j_common_ptr info) { longjmp(((Turbo *)info->client_data)->escape, 1); }

static void refuse_warnings(j_common_ptr info, int level) {
    if (level < 0) escape(info);
}

static void count_scans(j_common_ptr info) {
    if (((j_decompress_ptr)info)->input_scan_number > MAX_SCANS) escape(info);
}

// Return a handle for one thread at a time, or NULL.
PUBLIC void *fastpsl_turbo_open(void) {
    Turbo *turbo = calloc(1, sizeof(Turbo));
    if (!turbo) return NULL;
    turbo->decompress.err = turbo->compress.err = jpeg_std_error(&turbo->errors);
    turbo->errors.error_exit = escape;
    turbo->errors.emit_message = refuse_warnings;
    turbo->progress.progress_monitor = count_scans;
    turbo->decompress.client_data = turbo->compress.client_data = turbo;
    if (setjmp(turbo->escape)) { // such as another version's header
        free(turbo);
        return NULL;
    }
    jpeg_create_decompress(&turbo->decompress);
    jpeg_create_compress(&turbo->compress);
    return turbo;
}

PUBLIC void fastpsl_turbo_close(Turbo *turbo) {
    jpeg_destroy_decompress(&turbo->decompress);
    jpeg_destroy_compress(&turbo->compress);
    free(turbo->scan.bytes);
    free(turbo->scan.ends);
    free(turbo->memory[0]);
    free(turbo->memory[1]);
    free(turbo);
}

uint8_t *turbo_memory(Turbo *turbo, int use, int64_t num_bytes) {
    size_t needed = num_bytes > 0 ? (size_t)num_bytes : 1;
    return turbo_reserve(&turbo->memory[use], &turbo->capacities[use], needed) ? turbo->memory[use] : NULL;
}

void turbo_free_large(Turbo *turbo) {
    for (int use = 0; use < 2; use++)
        if (turbo->capacities[use] > LARGE_BYTES) {
            free(turbo->memory[use]);
            turbo->memory[use] = NULL, turbo->capacities[use] = 0;
        }
}

void turbo_read_header(Turbo *turbo, const uint8_t *jpeg, uint64_t num_bytes) {
    j_decompress_ptr info = &turbo->decompress;
    // Anew, because libjpeg keeps the tables of the image before, and would use them where this one has none.
    jpeg_destroy_decompress(info);
    jpeg_create_decompress(info);
    info->progress = &turbo->progress;
    jpeg_mem_src(info, jpeg, num_bytes);
    jpeg_read_header(info, TRUE);
}

// Return whether libjpeg crops columns of a scaled decode right. Before 3.0, jpeg_crop_scanline takes a component's
// width for that of blocks scaled like the others'. This fails where libjpeg enlarges a component in part by larger
// blocks and in part by upsampling, such as colours of 4x2 at 1/2.
static int crops_columns(j_decompress_ptr info) {
    for (int i = 0; i < info->num_components; i++) {
        jpeg_component_info *component = &info->comp_info[i];
        int block = SCALED_BLOCK(component), usual = MIN_SCALED_BLOCK(info);
        int is_whole = component->h_samp_factor * block == info->max_h_samp_factor * usual
                    && component->v_samp_factor * block == info->max_v_samp_factor * usual;
        if (block != usual && !is_whole) return 0;
    }
    return 1;
}

// Decode the part of a JPEG that contains a region, to RGB.
//
// Returns TURBO_CORRUPT where the JPEG has no end, another size, or what libjpeg finds an error in or warns of as far
// as it was decoded, and TURBO_OTHER_VERSION where its coefficients are packed in another way.
PUBLIC int fastpsl_turbo_decode(
    Turbo *turbo, const uint8_t *jpeg, uint64_t num_bytes, uint32_t height, uint32_t width, uint32_t denominator,
    int is_smooth,           // whether colour of half the size is interpolated, which equals a usual decode
    int is_packed,           // whether its coefficients are packed, with PACKED_PADDING bytes behind them
    const int64_t region[4], // top, left, height, width, in pixels of the image scaled by 1 / denominator
    uint8_t *pixels,         // room for the whole scaled image
    int64_t placed[4]        // the part that was decoded, as in `region`; its rows follow each other in `pixels`
) {
    j_decompress_ptr info = &turbo->decompress;
    turbo->packed.is_other = 0;
    // libjpeg reports errors by jumping here, and nothing below may hold memory of its own.
    if (setjmp(turbo->escape)) {
        jpeg_abort_decompress(info);
        return turbo->packed.is_other ? TURBO_OTHER_VERSION : TURBO_CORRUPT;
    }
    turbo_read_header(turbo, jpeg, num_bytes);
    if (info->image_height != height || info->image_width != width) ERREXIT(info, JERR_IMAGE_TOO_BIG);
    // libjpeg would read the scans of others itself, before the streams are checked.
    if (is_packed && (jpeg_has_multiple_scans(info) || info->arith_code)) ERREXIT(info, JERR_INPUT_EOF);
    info->out_color_space = JCS_RGB;
    info->dct_method = JDCT_ISLOW;
    info->do_fancy_upsampling = is_smooth;
    info->scale_num = 1, info->scale_denom = denominator;
    jpeg_start_decompress(info);
    // Upsampling at the left and right of the crop looks at its neighbours: one MCU more there, and a few rows.
    // An MCU of one component is one block, whatever its sampling factors say (ITU-T T.81, A.2.2).
    int num_across = info->num_components == 1 ? 1 : info->max_h_samp_factor;
    uint32_t mcu = (uint32_t)(num_across * MIN_SCALED_BLOCK(info));
    uint32_t full_width = info->output_width, full_height = info->output_height;
    uint32_t left = (uint32_t)region[1] / mcu * mcu, stop = (uint32_t)(region[1] + region[3]);
    left = left > mcu ? left - mcu : 0;
    stop = (stop + 2 * mcu - 1) / mcu * mcu;
    if (stop > full_width) stop = full_width;
    if (!crops_columns(info)) left = 0, stop = full_width;
    uint32_t first_column = left / mcu, stop_column = (stop + mcu - 1) / mcu;
    if (is_packed)
        turbo_take_packed(turbo, jpeg, first_column, stop_column);
    else if (!turbo_take_over(turbo, first_column, stop_column))
        ERREXIT1(info, JERR_OUT_OF_MEMORY, 0);
    if (left > 0 || stop < full_width) {
        JDIMENSION offset = left, columns = stop - left;
        jpeg_crop_scanline(info, &offset, &columns);
        left = offset, stop = offset + columns;
    }
    uint32_t top = (uint32_t)region[0], bottom = top + (uint32_t)region[2];
    if (top) jpeg_skip_scanlines(info, top);
    size_t stride = (size_t)(stop - left) * 3;
    while (info->output_scanline < bottom) {
        JSAMPROW rows[16];
        for (int i = 0; i < 16; i++) rows[i] = pixels + (info->output_scanline - top + i) * stride;
        uint32_t num = bottom - info->output_scanline;
        jpeg_read_scanlines(info, rows, num < 16 ? num : 16);
    }
    placed[0] = top, placed[1] = left, placed[2] = bottom - top, placed[3] = stop - left;
    if (bottom == full_height && !is_packed)
        jpeg_finish_decompress(info); // reads on to the end, where a marker may be missing
    else
        jpeg_abort_decompress(info);
    return TURBO_GOOD;
}

void turbo_set_encoder(
    j_compress_ptr info, uint32_t height, uint32_t width, J_COLOR_SPACE colours, int quality
) {
    info->image_height = height, info->image_width = width;
    info->input_components = 3, info->in_color_space = colours;
    jpeg_set_defaults(info);
    jpeg_set_quality(info, quality, TRUE);
    info->dct_method = JDCT_ISLOW;
}

// Encode an image, RGB, as a baseline JPEG, 4:2:0, with the accurate DCT.
//
// Returns the JPEG's bytes, or 0 where libjpeg has an error. `capacity` is 3 * (height + 16) * (width + 16) + 2048
// or more, which is enough for every image.
PUBLIC uint64_t fastpsl_turbo_encode(
    Turbo *turbo, const uint8_t *pixels, uint32_t height, uint32_t width, int quality, uint8_t *out, uint64_t capacity
) {
    j_compress_ptr info = &turbo->compress;
    unsigned char *memory = out;
    unsigned long num_bytes = capacity;
    if (setjmp(turbo->escape)) {
        jpeg_abort_compress(info);
        return 0;
    }
    jpeg_mem_dest(info, &memory, &num_bytes);
    turbo_set_encoder(info, height, width, JCS_RGB, quality);
    jpeg_start_compress(info, TRUE);
    while (info->next_scanline < height) {
        JSAMPROW rows[16];
        for (uint32_t i = 0; i < 16; i++) rows[i] = (JSAMPROW)pixels + (size_t)(info->next_scanline + i) * width * 3;
        uint32_t num = height - info->next_scanline;
        jpeg_write_scanlines(info, rows, num < 16 ? num : 16);
    }
    jpeg_finish_compress(info);
    if (memory != out) { // libjpeg took memory of its own, which an ample capacity prevents
        free(memory);
        return 0;
    }
    return num_bytes;
}
