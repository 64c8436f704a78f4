// Packing of a JPEG's coefficients (coefficients.h).

#include "handle.h"

#define MOST_AHEAD 16 // bytes behind what a stream takes that are written to

typedef struct {
    uint8_t *heads, *masks, *values, *extras, *escapes, *wides;
    PackedRow at;
} Streams;

// Put up to 16 nibbles behind others, the lowest first.
INLINE void put_nibbles(uint8_t *stream, uint32_t *at, uint64_t nibbles, int num) {
    uint8_t *byte = stream + (*at >> 1);
    int shift = 4 * (*at & 1);
    uint64_t word = nibbles << shift | (shift ? *byte & 15 : 0);
    memcpy(byte, &word, 8);
    byte[8] = (uint8_t)(nibbles >> 1 >> (63 - shift));
    *at += (uint32_t)num;
}

INLINE void put_wide(const Streams *streams, PackedRow *at, int value) {
    int16_t wide = (int16_t)value;
    memcpy(streams->wides + 2 * (uint64_t)at->wides++, &wide, 2);
}

INLINE void put_value(const Streams *streams, PackedRow *at, int value) {
    int size = abs(value), sign = value < 0 ? 8 : 0;
    if (size < 7) {
        put_nibbles(streams->values, &at->values, (uint64_t)(size | sign), 1);
    } else if (size <= 22) {
        put_nibbles(streams->values, &at->values, (uint64_t)(7 | sign), 1);
        put_nibbles(streams->extras, &at->extras, (uint64_t)(size - 7), 1);
    } else if (size <= 127) {
        put_nibbles(streams->values, &at->values, 0, 1);
        streams->escapes[at->escapes++] = (uint8_t)value;
    } else {
        put_nibbles(streams->values, &at->values, 8, 1);
        put_wide(streams, at, value);
    }
}

// Put a block behind the others; return its head.
INLINE uint8_t put_block(const Streams *streams, PackedRow *at, const JCOEF *block, int difference) {
    uint64_t mask = 0;
    for (int z = 1; z < 64; z++) mask |= (uint64_t)(block[turbo_zigzag[z]] != 0) << (z - 1);
    int num = mask ? (63 - __builtin_clzll(mask)) / 4 + 1 : 0, is_small = abs(difference) <= 7;
    if (num == 15) num = 16; // heads have no number for 15
    put_nibbles(streams->masks, &at->masks, mask, num);
    if (!is_small) {
        int is_wide = abs(difference) > 127;
        streams->escapes[at->escapes++] = (uint8_t)(is_wide ? INT8_MIN : difference);
        if (is_wide) put_wide(streams, at, difference);
    }
    for (; mask; mask &= mask - 1) put_value(streams, at, block[turbo_zigzag[__builtin_ctzll(mask) + 1]]);
    return (uint8_t)((num < 15 ? num : 15) | (is_small ? difference & 15 : 8) << 4);
}

// Put all blocks, in the order of an interleaved scan, and where each row of MCUs begins.
static void put_blocks(j_decompress_ptr info, jvirt_barray_ptr *coefficients, Streams *streams, PackedRow *rows) {
    JDIMENSION columns = info->MCUs_per_row, num_rows = info->MCU_rows_in_scan;
    PackedRow at = {0};
    uint8_t *head = streams->heads;
    for (JDIMENSION row = 0; row < num_rows; row++) {
        rows[row] = at;
        int dc[MAX_COMPS_IN_SCAN] = {0};
        JBLOCKARRAY blocks[MAX_COMPS_IN_SCAN];
        for (int i = 0; i < info->num_components; i++) {
            JDIMENSION down = (JDIMENSION)info->comp_info[i].MCU_height; // the arrays end at a multiple of it
            blocks[i] = info->mem->access_virt_barray((j_common_ptr)info, coefficients[i], row * down, down, FALSE);
        }
        for (JDIMENSION column = 0; column < columns; column++)
            for (int i = 0; i < info->num_components; i++) {
                const jpeg_component_info *component = &info->comp_info[i];
                JDIMENSION down = (JDIMENSION)component->MCU_height, across = (JDIMENSION)component->MCU_width;
                for (JDIMENSION y = 0; y < down; y++)
                    for (JDIMENSION x = column * across; x < (column + 1) * across; x++) {
                        *head = 0;
                        if (row * down + y < component->height_in_blocks && x < component->width_in_blocks) {
                            const JCOEF *block = blocks[i][y][x];
                            *head = put_block(streams, &at, block, block[0] - dc[i]);
                            dc[i] = block[0];
                        }
                        head++;
                    }
            }
    }
    rows[num_rows] = streams->at = at;
}

// Find the MCUs of a scan of all components, of which the image may have had several scans. Return 0 where there is
// none such: its MCUs would be too large.
static int lay_out_scan(j_decompress_ptr info) {
    uint32_t across = (uint32_t)info->max_h_samp_factor * DCTSIZE, down = (uint32_t)info->max_v_samp_factor * DCTSIZE;
    info->blocks_in_MCU = 0;
    for (int i = 0; i < info->num_components; i++) {
        jpeg_component_info *component = &info->comp_info[i];
        int is_alone = info->num_components == 1;
        if (is_alone) across = down = DCTSIZE;
        component->MCU_width = is_alone ? 1 : component->h_samp_factor;
        component->MCU_height = is_alone ? 1 : component->v_samp_factor;
        info->blocks_in_MCU += component->MCU_width * component->MCU_height;
    }
    info->MCUs_per_row = (info->image_width + across - 1) / across;
    info->MCU_rows_in_scan = (info->image_height + down - 1) / down;
    return info->blocks_in_MCU <= D_MAX_BLOCKS_IN_MCU;
}

// Count the AC coefficients that are not zero. Return -1 where some are missing, or are such as no baseline JPEG has.
static int64_t count_values(j_decompress_ptr info, jvirt_barray_ptr *coefficients) {
    int64_t num = 0;
    for (int i = 0; i < info->num_components; i++) {
        const jpeg_component_info *component = &info->comp_info[i];
        if (!component->quant_table) return -1; // no scan has the component
        // Where scans of a progressive JPEG are missing, libjpeg smooths what it has.
        for (int k = 0; info->progressive_mode && k < DCTSIZE2; k++)
            if (info->coef_bits[i][k]) return -1;
        for (JDIMENSION y = 0; y < component->height_in_blocks; y++) {
            JBLOCKROW blocks = info->mem->access_virt_barray((j_common_ptr)info, coefficients[i], y, 1, FALSE)[0];
            for (JDIMENSION x = 0; x < component->width_in_blocks; x++) {
                const JCOEF *block = blocks[x];
                int16_t largest = 0, num_here = 0;
                for (int k = 1; k < DCTSIZE2; k++) {
                    int16_t size = (int16_t)(block[k] < 0 ? -block[k] : block[k]);
                    largest |= size, num_here += size != 0;
                }
                int is_usual = block[0] >= -PACKED_MOST_DC && block[0] < PACKED_MOST_DC;
                if (!is_usual || largest < 0 || largest > PACKED_MOST_AC) return -1;
                num += num_here;
            }
        }
    }
    return num;
}

static uint8_t *put_segment(uint8_t *out, int marker, int num_bytes) {
    *out++ = 0xFF, *out++ = (uint8_t)marker;
    *out++ = (uint8_t)((num_bytes + 2) >> 8), *out++ = (uint8_t)(num_bytes + 2);
    return out;
}

#define MOST_SEGMENTS (2 + 16 + 3 * 133 + 19 + 2 * 22 + 14)

// Write the segments before the packed coefficients to `out`, and return their end.
static uint8_t *put_segments(j_decompress_ptr info, uint8_t *out) {
    static const uint8_t adobe[12] = {'A', 'd', 'o', 'b', 'e', 0, 100}; // and no transformation of colours
    int num = info->num_components, table_of[MAX_COMPS_IN_SCAN];
    *out++ = 0xFF, *out++ = 0xD8;
    if (info->jpeg_color_space == JCS_RGB) out = (uint8_t *)memcpy(put_segment(out, 0xEE, 12), adobe, 12) + 12;
    for (int i = 0; i < num; i++) {
        const UINT16 *values = info->comp_info[i].quant_table->quantval;
        table_of[i] = i;
        for (int k = i - 1; k >= 0; k--)
            if (!memcmp(values, info->comp_info[k].quant_table->quantval, 2 * DCTSIZE2)) table_of[i] = table_of[k];
        if (table_of[i] != i) continue;
        int is_large = 0;
        for (int k = 0; k < DCTSIZE2; k++) is_large |= values[k] > 255;
        out = put_segment(out, 0xDB, 1 + DCTSIZE2 * (1 + is_large));
        *out++ = (uint8_t)(is_large << 4 | i);
        for (int z = 0; z < DCTSIZE2; z++) {
            if (is_large) *out++ = (uint8_t)(values[turbo_zigzag[z]] >> 8);
            *out++ = (uint8_t)values[turbo_zigzag[z]];
        }
    }
    out = put_segment(out, 0xC0, 6 + 3 * num);
    *out++ = 8;
    *out++ = (uint8_t)(info->image_height >> 8), *out++ = (uint8_t)info->image_height;
    *out++ = (uint8_t)(info->image_width >> 8), *out++ = (uint8_t)info->image_width;
    *out++ = (uint8_t)num;
    for (int i = 0; i < num; i++) {
        const jpeg_component_info *component = &info->comp_info[i];
        *out++ = (uint8_t)(i + 1);
        *out++ = (uint8_t)(component->MCU_width << 4 | component->MCU_height), *out++ = (uint8_t)table_of[i];
    }
    for (int class = 0; class < 2; class++) { // of one code of one bit, for 0
        out = put_segment(out, 0xC4, 18);
        memset(out, 0, 18);
        out[0] = (uint8_t)(class << 4), out[1] = 1;
        out += 18;
    }
    out = put_segment(out, 0xDA, 4 + 2 * num);
    *out++ = (uint8_t)num;
    for (int i = 0; i < num; i++) *out++ = (uint8_t)(i + 1), *out++ = 0;
    *out++ = 0, *out++ = DCTSIZE2 - 1, *out++ = 0;
    return out;
}

// Put the streams and what comes before them. Returns the number of bytes, at *out.
static uint64_t put_sample(
    Turbo *turbo, jvirt_barray_ptr *coefficients, uint64_t num_values, const uint8_t **out
) {
    j_decompress_ptr info = &turbo->decompress;
    uint8_t segments[MOST_SEGMENTS];
    uint64_t num_segments = (uint64_t)(put_segments(info, segments) - segments), num_rows = info->MCU_rows_in_scan;
    uint64_t prologue = packed_aligned(num_segments), table = packed_aligned(prologue + 8);
    uint64_t num_blocks = num_rows * info->MCUs_per_row * (uint64_t)info->blocks_in_MCU;
    uint64_t most[6] = {
        num_blocks, 8 * num_blocks, (num_values + 1) / 2, (num_values + 1) / 2, num_values + num_blocks,
        2 * (num_values + num_blocks),
    };
    uint64_t starts[7] = {(num_rows + 1) * sizeof(PackedRow)}; // the table comes first
    for (int i = 0; i < 6; i++) starts[i + 1] = starts[i] + most[i] + MOST_AHEAD;
    uint8_t *room = turbo_memory(turbo, 0, (int64_t)starts[6]);
    if (!room) ERREXIT1(info, JERR_OUT_OF_MEMORY, 0);
    uint8_t *streams[6];
    for (int i = 0; i < 6; i++) streams[i] = room + starts[i];
    Streams put = {streams[0], streams[1], streams[2], streams[3], streams[4], streams[5], {0}};
    put_blocks(info, coefficients, &put, (PackedRow *)room);
    uint64_t sizes[6], total = table + starts[0];
    packed_sizes(num_blocks, &put.at, sizes);
    for (int i = 0; i < 6; i++) total = packed_aligned(total) + sizes[i];
    uint8_t *packed = turbo_memory(turbo, 1, (int64_t)total);
    if (!packed) ERREXIT1(info, JERR_OUT_OF_MEMORY, 0);
    memset(packed, 0, total);
    memcpy(packed, segments, num_segments);
    uint32_t head[2] = {PACKED_VERSION, (uint32_t)num_rows};
    memcpy(packed + prologue, head, sizeof head);
    memcpy(packed + table, room, starts[0]);
    uint64_t at = table + starts[0];
    for (int i = 0; i < 6; i++) {
        at = packed_aligned(at);
        memcpy(packed + at, streams[i], sizes[i]);
        at += sizes[i];
    }
    *out = packed;
    return total;
}

// Pack the coefficients of a JPEG.
//
// Returns the number of bytes, which are at *out until the next call; or 0 where libjpeg finds an error in the JPEG or
// warns of it, where it has another kind of colours or other coefficients than are packed, or where memory lacks.
PUBLIC uint64_t fastpsl_coefficients_pack(Turbo *turbo, const uint8_t *jpeg, uint64_t num_bytes, const uint8_t **out) {
    j_decompress_ptr info = &turbo->decompress;
    if (setjmp(turbo->escape)) {
        jpeg_abort_decompress(info);
        return 0;
    }
    turbo_free_large(turbo); // of the call before
    turbo_read_header(turbo, jpeg, num_bytes);
    int num = info->num_components, colours = info->jpeg_color_space;
    int is_known = num == 3 ? colours == JCS_YCbCr || colours == JCS_RGB : num == 1 && colours == JCS_GRAYSCALE;
    jvirt_barray_ptr *coefficients = is_known ? jpeg_read_coefficients(info) : NULL;
    int64_t num_values = coefficients && lay_out_scan(info) ? count_values(info, coefficients) : -1;
    uint64_t total = num_values < 0 ? 0 : put_sample(turbo, coefficients, (uint64_t)num_values, out);
    jpeg_abort_decompress(info);
    return total;
}
