// JPEGs of kinds that Pillow does not write, and libjpeg's own whole decode of them. The bindings are in jpeg_kinds.py.

#include <setjmp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <jpeglib.h>

typedef struct {
    struct jpeg_error_mgr errors;
    jmp_buf escape;
} Errors;

static void escape(j_common_ptr info) { longjmp(((Errors *)info->err)->escape, 1); }
static void ignore(j_common_ptr info, int level) { (void)info, (void)level; }

static struct jpeg_error_mgr *begin(Errors *errors) {
    jpeg_std_error(&errors->errors);
    errors->errors.error_exit = escape;
    errors->errors.emit_message = ignore;
    return &errors->errors;
}

// Encode uint8 [height, width, 1 or 3]; returns the JPEG's bytes, or 0 after an error. With `num_planes`, each
// coefficient of a grey image has that many scans, each of one more bit.
uint64_t jpeg_kind(
    const uint8_t *pixels, uint32_t height, uint32_t width, int num_components, int is_rgb, const int sampling[6],
    int quality, int is_progressive, int num_planes, int is_arithmetic, int restart_rows, int is_optimised, int is_interleaved,
    uint8_t *out, uint64_t capacity
) {
    struct jpeg_compress_struct info;
    Errors errors;
    unsigned char *memory = out;
    unsigned long num_bytes = capacity;
    jpeg_scan_info scans[1024] = {{0}};
    info.err = begin(&errors);
    jpeg_create_compress(&info);
    if (setjmp(errors.escape)) {
        jpeg_destroy_compress(&info);
        return 0;
    }
    jpeg_mem_dest(&info, &memory, &num_bytes);
    info.image_height = height, info.image_width = width;
    info.input_components = num_components;
    info.in_color_space = num_components == 1 ? JCS_GRAYSCALE : JCS_RGB;
    jpeg_set_defaults(&info);
    if (is_rgb) jpeg_set_colorspace(&info, JCS_RGB);
    jpeg_set_quality(&info, quality, TRUE);
    for (int c = 0; c < num_components; c++) {
        info.comp_info[c].h_samp_factor = sampling[2 * c], info.comp_info[c].v_samp_factor = sampling[2 * c + 1];
        scans[c].comps_in_scan = 1, scans[c].component_index[0] = c, scans[c].Se = 63;
    }
    if (is_progressive) jpeg_simple_progression(&info);
    if (!is_interleaved) info.scan_info = scans, info.num_scans = num_components;
    if (num_planes) {
        info.scan_info = scans, info.num_scans = 64 * num_planes;
        for (int i = 0; i < info.num_scans; i++) {
            int low = num_planes - 1 - i % num_planes, k = i / num_planes;
            scans[i] = (jpeg_scan_info){.comps_in_scan = 1, .Ss = k, .Se = k, .Al = low};
            if (i % num_planes) scans[i].Ah = low + 1;
        }
    }
    info.arith_code = is_arithmetic, info.restart_in_rows = restart_rows, info.optimize_coding = is_optimised;
    jpeg_start_compress(&info, TRUE);
    while (info.next_scanline < height) {
        JSAMPROW row = (JSAMPROW)pixels + (size_t)info.next_scanline * width * (size_t)num_components;
        jpeg_write_scanlines(&info, &row, 1);
    }
    jpeg_finish_compress(&info);
    jpeg_destroy_compress(&info);
    return memory == out ? num_bytes : 0;
}

// Read a JPEG's header; errors escape to where `errors` says.
static void read_header(struct jpeg_decompress_struct *info, Errors *errors, const uint8_t *jpeg, uint64_t num_bytes) {
    info->err = begin(errors);
    jpeg_create_decompress(info);
    jpeg_mem_src(info, jpeg, num_bytes);
    jpeg_read_header(info, TRUE);
}

// Decode a whole JPEG at 1 / denominator, to uint8 [rows, columns, 3]; returns 0, or 1 after an error.
int jpeg_whole(const uint8_t *jpeg, uint64_t num_bytes, uint32_t denominator, uint8_t *out) {
    struct jpeg_decompress_struct info = {0};
    Errors errors;
    if (setjmp(errors.escape)) {
        jpeg_destroy_decompress(&info);
        return 1;
    }
    read_header(&info, &errors, jpeg, num_bytes);
    info.out_color_space = JCS_RGB, info.scale_num = 1, info.scale_denom = denominator;
    jpeg_start_decompress(&info);
    while (info.output_scanline < info.output_height) {
        JSAMPROW row = out + (size_t)info.output_scanline * info.output_width * 3;
        jpeg_read_scanlines(&info, &row, 1);
    }
    jpeg_finish_decompress(&info);
    jpeg_destroy_decompress(&info);
    return 0;
}

// Write a JPEG's quantisation tables, uint16 [3, 64], and its coefficients, int16 [blocks, 64], a component after the
// other, both in natural order; returns the number of blocks, or 0 after an error.
uint64_t jpeg_coefficients(const uint8_t *jpeg, uint64_t num_bytes, uint16_t *tables, int16_t *out) {
    struct jpeg_decompress_struct info = {0};
    Errors errors;
    if (setjmp(errors.escape)) {
        jpeg_destroy_decompress(&info);
        return 0;
    }
    read_header(&info, &errors, jpeg, num_bytes);
    jvirt_barray_ptr *arrays = jpeg_read_coefficients(&info);
    uint64_t num = 0;
    for (int c = 0; c < info.num_components; c++) {
        jpeg_component_info *component = &info.comp_info[c];
        for (int k = 0; k < 64; k++) tables[64 * c + k] = component->quant_table->quantval[k];
        for (JDIMENSION y = 0; y < component->height_in_blocks; y++, num += component->width_in_blocks) {
            JBLOCKARRAY row = info.mem->access_virt_barray((j_common_ptr)&info, arrays[c], y, 1, FALSE);
            memcpy(out + 64 * num, row[0], component->width_in_blocks * sizeof(JBLOCK));
        }
    }
    jpeg_destroy_decompress(&info);
    return num;
}
