// Decoding of a part of a JPEG, encoding, and shrinking, on libjpeg-turbo. The bindings are in libturbo.py.
//
// A crop needs a part of its image only. The rows below it are never decoded; those above it and the columns
// beside it go through the entropy decoder alone. What is decoded equals a full decode with the accurate DCT
// and smooth ("fancy") upsampling bit for bit. The Huffman decoder of libjpeg-turbo, which takes two thirds
// of the time, is replaced for the usual JPEG: baseline, one scan, no restart markers. Others take libjpeg's own.

#include <setjmp.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <jpeglib.h>
#include <jerror.h>

#include "turbo.h"
#ifndef LIBJPEG_TURBO_VERSION_NUMBER
#error "libjpeg-turbo is needed; this is another libjpeg"
#endif

#define LIKELY(condition) __builtin_expect(!!(condition), 1)
#if JPEG_LIB_VERSION >= 70 // the interface of libjpeg 7 and 8, as Ubuntu builds it
#define SCALED_BLOCK(component) (component)->DCT_h_scaled_size
#define MIN_SCALED_BLOCK(info) (info)->min_DCT_h_scaled_size
#else
#define SCALED_BLOCK(component) (component)->DCT_scaled_size
#define MIN_SCALED_BLOCK(info) (info)->min_DCT_scaled_size
#endif

#define LOOKUP_BITS 10
#define NUM_TABLES 4       // of DC and of AC, as JPEG allows
#define END_OF_BLOCK 64    // a run that ends the block
#define PADDING 4096       // zeros after the scan's bytes: more than the largest MCU takes

// What `LOOKUP_BITS` bits tell of a block's AC values. `room` is how many places they take, with the one of the
// end's mark if it is among them; NO_ROOM where the bits tell too little. `bits` has END where the block ends.
#define NO_ROOM 127
#define END 128
typedef struct { // one value or two
    int16_t value[2];
    uint8_t place[2]; // from the block's present one; a second value that is missing is 0 at the first one's place
    uint8_t room, bits;
} Step;
typedef struct { // as many values as begin in the bits, to be skipped
    uint8_t room, bits;
} Skip;

// One Huffman table of JPEG (ITU-T T.81, Annex C), with what `LOOKUP_BITS` bits tell at once.
typedef struct {
    int is_valid;
    uint8_t bits[17], values[256];    // as in the file; the table is built again where they differ
    int32_t symbol[1 << LOOKUP_BITS]; // value << 16 | run << 8 | bits of code and value, or 0: they are longer
    uint16_t code[1 << LOOKUP_BITS];  // bits of the code << 8 | symbol, or 0: the code is longer
    Step step[1 << LOOKUP_BITS];      // of AC
    Skip skip[1 << LOOKUP_BITS];
    int32_t limit[17], offset[17];    // by the code's bits: its 16-bit upper limit, and where its values begin
} HuffmanTable;

// The bits of a scan, in local variables while an MCU is decoded.
typedef struct {
    const uint8_t *next;
    uint64_t reservoir; // the next bits, from the top
    int num_bits;       // in the reservoir
} Bits;

typedef struct {
    uint8_t *bytes; // the scan without the stuffed zeros, then PADDING zeros
    size_t capacity;
    const uint8_t *end;
    Bits bits;
    int predictor[MAX_COMPS_IN_SCAN];
    int component[D_MAX_BLOCKS_IN_MCU];
    int needs_ac[D_MAX_BLOCKS_IN_MCU];
    const HuffmanTable *dc[D_MAX_BLOCKS_IN_MCU], *ac[D_MAX_BLOCKS_IN_MCU];
    HuffmanTable tables[2][NUM_TABLES];
    uint32_t column, num_columns, first_column, stop_column; // MCUs; those outside of the crop are skipped
    uint64_t num_left;                                       // MCUs
} Scan;

struct Turbo {
    struct jpeg_decompress_struct decompress; // first: libjpeg's pointer to it is ours
    struct jpeg_compress_struct compress;
    struct jpeg_error_mgr errors;
    jmp_buf escape;
    Scan scan;
    uint8_t *memory[2];
    size_t capacities[2];
};

static void escape(j_common_ptr info) { longjmp(((Turbo *)info->client_data)->escape, 1); }

static void count_warning(j_common_ptr info, int level) {
    if (level < 0) info->err->num_warnings++;
}

// Return a handle for one thread at a time, or NULL.
PUBLIC void *fastpsl_turbo_open(void) {
    Turbo *turbo = calloc(1, sizeof(Turbo));
    if (!turbo) return NULL;
    turbo->decompress.err = turbo->compress.err = jpeg_std_error(&turbo->errors);
    turbo->errors.error_exit = escape;
    turbo->errors.emit_message = count_warning;
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
    free(turbo->memory[0]);
    free(turbo->memory[1]);
    free(turbo);
}

static int reserve(uint8_t **memory, size_t *capacity, size_t needed) {
    if (*capacity >= needed) return 1;
    free(*memory);
    *capacity = needed + needed / 4;
    *memory = malloc(*capacity);
    if (!*memory) *capacity = 0;
    return *memory != NULL;
}

uint8_t *turbo_memory(Turbo *turbo, int use, int64_t num_bytes) {
    size_t needed = num_bytes > 0 ? (size_t)num_bytes : 1;
    return reserve(&turbo->memory[use], &turbo->capacities[use], needed) ? turbo->memory[use] : NULL;
}

// ---- Huffman decoding -----------------------------------------------------------------------------------

static const uint8_t zigzag[64] = {
    0,  1,  8,  16, 9,  2,  3,  10, 17, 24, 32, 25, 18, 11, 4,  5,  12, 19, 26, 33, 40, 48,
    41, 34, 27, 20, 13, 6,  7,  14, 21, 28, 35, 42, 49, 56, 57, 50, 43, 36, 29, 22, 15, 23,
    30, 37, 44, 51, 58, 59, 52, 45, 38, 31, 39, 46, 53, 60, 61, 54, 47, 55, 62, 63,
};

INLINE int extended(uint32_t bits, int size) { // T.81, F.2.2.1
    return bits < 1u << (size - 1) ? (int)bits - (1 << size) + 1 : (int)bits;
}

// Fill in the lookup of a code of `length` bits, for every continuation by the bits of its value.
static void enter(HuffmanTable *table, uint32_t code, int length, int symbol, int is_ac) {
    int size = is_ac ? symbol & 15 : symbol, run = is_ac ? symbol >> 4 : 0, is_end = is_ac && size == 0;
    uint32_t first = code << (LOOKUP_BITS - length), num = 1u << (LOOKUP_BITS - length);
    for (uint32_t i = 0; i < num; i++) {
        table->code[first + i] = (uint16_t)(length << 8 | symbol);
        if (is_end) // the end of the block, or sixteen zeros
            table->symbol[first + i] = (run == 15 ? 16 : END_OF_BLOCK) << 8 | length;
        else if (length + size <= LOOKUP_BITS) {
            uint32_t bits = i >> (LOOKUP_BITS - length - size) & ((1u << size) - 1);
            int value = size ? extended(bits, size) : 0;
            table->symbol[first + i] = (int32_t)((uint32_t)value << 16) | run << 8 | (length + size);
        }
    }
}

// Fill in the steps of AC values, from the lookup of single ones.
static void enter_steps(HuffmanTable *table) {
    const uint32_t mask = (1u << LOOKUP_BITS) - 1;
    for (uint32_t i = 0; i <= mask; i++) {
        Step step = {.room = NO_ROOM};
        for (int num = 0, used = 0, room = 0; num < 2; num++) {
            int32_t entry = table->symbol[i << used & mask];
            int length = entry & 255, run = entry >> 8 & 255, is_end = run == END_OF_BLOCK;
            if (!entry || used + length > LOOKUP_BITS) break;
            used += length;
            if (!is_end) {
                int is_value = run < 16; // or sixteen zeros
                step.place[1] = (uint8_t)(room + run - !is_value), step.value[1] = (int16_t)(entry >> 16);
                if (!num) step.place[0] = step.place[1], step.value[0] = step.value[1];
                room += run + is_value;
            }
            step.room = (uint8_t)(room + is_end), step.bits = (uint8_t)(used | (is_end ? END : 0));
            if (is_end) break;
        }
        table->step[i] = step;

        Skip skip = {.room = NO_ROOM};
        for (int used = 0, room = 0; used < LOOKUP_BITS;) {
            int code = table->code[i << used & mask], size = code & 15, run = code >> 4 & 15;
            if (!code || used + (code >> 8) > LOOKUP_BITS) break;
            int is_end = !size && run != 15;
            used += (code >> 8) + size;
            room += is_end ? 1 : run + 1;
            skip.room = (uint8_t)room, skip.bits = (uint8_t)(used | (is_end ? END : 0));
            if (is_end) break;
        }
        table->skip[i] = skip;
    }
}

static const HuffmanTable *derived(HuffmanTable *table, const JHUFF_TBL *source, int is_ac) {
    if (!source) return NULL;
    if (table->is_valid && !memcmp(table->bits, source->bits, 17) && !memcmp(table->values, source->huffval, 256))
        return table;
    memset(table, 0, sizeof *table);
    memcpy(table->bits, source->bits, 17);
    memcpy(table->values, source->huffval, 256);
    int32_t code = 0, k = 0;
    for (int length = 1; length <= 16; length++, code <<= 1) {
        table->offset[length] = k - code;
        for (int i = 0; i < source->bits[length]; i++, k++, code++) {
            if (k >= 256 || code >= 1 << length) return NULL;
            if (length <= LOOKUP_BITS) enter(table, code, length, source->huffval[k], is_ac);
        }
        table->limit[length] = code << (16 - length);
    }
    if (is_ac) enter_steps(table);
    table->is_valid = 1;
    return table;
}

static int long_code(const HuffmanTable *table, uint64_t reservoir) {
    int32_t bits = (int32_t)(reservoir >> 48);
    for (int length = LOOKUP_BITS + 1; length <= 16; length++)
        if (bits < table->limit[length])
            return length << 8 | table->values[(table->offset[length] + (bits >> (16 - length))) & 255];
    return 0;
}

// Have 32 bits or more: a code and its value take at most 31, and what a lookup finds takes less.
INLINE void refill(Bits *bits) {
    if (bits->num_bits >= 32) return;
    uint64_t word;
    memcpy(&word, bits->next, 8);
    bits->reservoir |= __builtin_bswap64(word) >> bits->num_bits;
    bits->next += (63 - bits->num_bits) >> 3;
    bits->num_bits |= 56;
}

INLINE void drop(Bits *bits, int count) {
    bits->reservoir <<= count;
    bits->num_bits -= count;
}

INLINE int32_t whole_symbol(const HuffmanTable *table, const Bits *bits) {
    return table->symbol[bits->reservoir >> (64 - LOOKUP_BITS)];
}

// Take a code and return its symbol, or -1 where there is no such code.
INLINE int take_code(const HuffmanTable *table, Bits *bits) {
    int code = table->code[bits->reservoir >> (64 - LOOKUP_BITS)];
    if (!code) code = long_code(table, bits->reservoir);
    drop(bits, code >> 8);
    return code ? code & 255 : -1;
}

INLINE int take_value(Bits *bits, int size) {
    int value = size ? extended((uint32_t)(bits->reservoir >> (64 - size)), size) : 0;
    drop(bits, size);
    return value;
}

// Decode the AC values of a block into `block`, or skip them where it is NULL. Returns 0 if they are damaged.
INLINE int take_ac(const HuffmanTable *table, Bits *bits, JCOEF *block) {
    for (int k = 1; k < 64;) {
        refill(bits);
        uint32_t next = (uint32_t)(bits->reservoir >> (64 - LOOKUP_BITS));
        int room, taken;
        if (block) {
            Step step = table->step[next];
            room = step.room, taken = step.bits;
            if (LIKELY(room <= 64 - k)) {
                block[zigzag[k + step.place[1]]] = step.value[1];
                block[zigzag[k + step.place[0]]] = step.value[0];
            }
        } else {
            Skip skip = table->skip[next];
            room = skip.room, taken = skip.bits;
        }
        if (LIKELY(room <= 64 - k)) {
            drop(bits, taken & ~END);
            if (taken & END) return 1;
            k += room;
            continue;
        }
        int symbol = take_code(table, bits), size = symbol & 15, run = symbol >> 4;
        if (symbol < 0) return 0;
        if (!size && run != 15) return 1;
        k += run;
        if (k > 63 && size) return 0;
        int value = take_value(bits, size);
        if (block && size) block[zigzag[k]] = (JCOEF)value;
        k++;
    }
    return 1;
}

// Decode an MCU, or skip its values where `blocks` is NULL or its column lies outside of the crop.
static boolean decode_mcu(j_decompress_ptr info, JBLOCKROW *blocks) {
    Scan *scan = &((Turbo *)info->client_data)->scan;
    Bits bits = scan->bits;
    int is_inside = scan->column >= scan->first_column && scan->column < scan->stop_column;
    if (++scan->column == scan->num_columns) scan->column = 0;
    for (int b = 0; b < info->blocks_in_MCU; b++) {
        refill(&bits);
        int32_t entry = whole_symbol(scan->dc[b], &bits);
        int value = entry >> 16;
        if (entry)
            drop(&bits, entry & 255);
        else {
            int size = take_code(scan->dc[b], &bits);
            if (size < 0 || size > 15) ERREXIT(info, JERR_INPUT_EOF);
            value = take_value(&bits, size);
        }
        value = scan->predictor[scan->component[b]] += value;
        if (blocks) (*blocks[b])[0] = (JCOEF)value;
        int is_whole = blocks && is_inside && scan->needs_ac[b] ? take_ac(scan->ac[b], &bits, *blocks[b])
                                                                 : take_ac(scan->ac[b], &bits, NULL);
        if (!is_whole) ERREXIT(info, JERR_INPUT_EOF);
    }
    // Zeros stand behind the end; some of them may pass before this sees it.
    const uint8_t *read = bits.next - (bits.num_bits >> 3);
    if (read > scan->end) ERREXIT(info, JERR_INPUT_EOF);
    scan->bits = bits;
    if (!--scan->num_left && read < scan->end) WARNMS(info, JWRN_EXTRANEOUS_DATA);
    return TRUE;
}

// Let our decode_mcu read the scan that begins, if it is of the usual kind. Return 0 where memory lacks.
static int take_over(Turbo *turbo, uint32_t first_column, uint32_t stop_column) {
    j_decompress_ptr info = &turbo->decompress;
    Scan *scan = &turbo->scan;
    if (info->progressive_mode || info->arith_code || info->restart_interval) return 1;
    if (info->comps_in_scan != info->num_components || info->buffered_image) return 1;
    struct jpeg_source_mgr *source = info->src;
    const uint8_t *byte = source->next_input_byte, *stop = byte + source->bytes_in_buffer;
    if (!reserve(&scan->bytes, &scan->capacity, source->bytes_in_buffer + PADDING)) return 0;
    uint8_t *out = scan->bytes;
    while (byte < stop) { // 0xFF in data is followed by 0; by anything else it is a marker
        const uint8_t *found = memchr(byte, 0xFF, stop - byte);
        const uint8_t *to = found ? found : stop;
        memcpy(out, byte, to - byte);
        out += to - byte, byte = to;
        if (!found) break;
        while (byte < stop && *byte == 0xFF) byte++;
        if (byte == stop) break;
        if (*byte) {
            if (*byte != JPEG_EOI) return 1; // libjpeg knows what to make of it
            byte--;
            break;
        }
        *out++ = 0xFF, byte++;
    }
    if (byte == stop) WARNMS(info, JWRN_JPEG_EOF);
    memset(out, 0, PADDING);
    for (int b = 0; b < info->blocks_in_MCU; b++) {
        int i = info->MCU_membership[b];
        jpeg_component_info *component = info->cur_comp_info[i];
        int dc = component->dc_tbl_no, ac = component->ac_tbl_no;
        if (dc < 0 || dc >= NUM_TABLES || ac < 0 || ac >= NUM_TABLES) return 1;
        scan->component[b] = i;
        scan->needs_ac[b] = component->component_needed && SCALED_BLOCK(component) > 1;
        if (!b || info->MCU_membership[b - 1] != i) {
            scan->dc[b] = derived(&scan->tables[0][dc], info->dc_huff_tbl_ptrs[dc], 0);
            scan->ac[b] = derived(&scan->tables[1][ac], info->ac_huff_tbl_ptrs[ac], 1);
        } else
            scan->dc[b] = scan->dc[b - 1], scan->ac[b] = scan->ac[b - 1];
        if (!scan->dc[b] || !scan->ac[b]) return 1;
    }
    memset(scan->predictor, 0, sizeof scan->predictor);
    scan->bits = (Bits){.next = scan->bytes}, scan->end = out;
    scan->column = 0, scan->num_columns = info->MCUs_per_row;
    scan->first_column = first_column, scan->stop_column = stop_column;
    scan->num_left = (uint64_t)info->MCUs_per_row * info->MCU_rows_in_scan;
    source->bytes_in_buffer = stop - byte, source->next_input_byte = byte; // libjpeg goes on at the marker
    // The beginning of jpegint.h's struct jpeg_entropy_decoder, the same since version 6b.
    struct {
        void (*start_pass)(j_decompress_ptr);
        boolean (*decode_mcu)(j_decompress_ptr, JBLOCKROW *);
    } *entropy = (void *)info->entropy;
    entropy->decode_mcu = decode_mcu;
    return 1;
}

// ---- Decoding -------------------------------------------------------------------------------------------

// Decode the part of a JPEG that contains a region, to RGB.
//
// Returns 0, or 1 where the JPEG has no end, another size, or what libjpeg finds an error in or warns of as far
// as it was decoded.
PUBLIC int fastpsl_turbo_decode(
    Turbo *turbo, const uint8_t *jpeg, uint64_t num_bytes, uint32_t height, uint32_t width, uint32_t denominator,
    int is_smooth,           // whether colour of half the size is interpolated, which equals a usual decode
    const int64_t region[4], // top, left, height, width, in pixels of the image scaled by 1 / denominator
    uint8_t *pixels,         // room for the whole scaled image
    int64_t placed[4]        // the part that was decoded, as in `region`; its rows follow each other in `pixels`
) {
    j_decompress_ptr info = &turbo->decompress;
    if (setjmp(turbo->escape)) {
        jpeg_abort_decompress(info);
        return 1;
    }
    turbo->errors.num_warnings = 0;
    jpeg_mem_src(info, jpeg, num_bytes);
    jpeg_read_header(info, TRUE);
    if (info->image_height != height || info->image_width != width) ERREXIT(info, JERR_IMAGE_TOO_BIG);
    info->out_color_space = JCS_RGB;
    info->dct_method = JDCT_ISLOW;
    info->do_fancy_upsampling = is_smooth;
    info->scale_num = 1, info->scale_denom = denominator;
    jpeg_start_decompress(info);
    // Upsampling at the left and right of the crop looks at its neighbours: one MCU more there, and a few rows.
    uint32_t mcu = (uint32_t)(info->max_h_samp_factor * MIN_SCALED_BLOCK(info));
    uint32_t full_width = info->output_width, full_height = info->output_height;
    uint32_t left = (uint32_t)region[1] / mcu * mcu, stop = (uint32_t)(region[1] + region[3]);
    left = left > mcu ? left - mcu : 0;
    stop = (stop + 2 * mcu - 1) / mcu * mcu;
    if (stop > full_width) stop = full_width;
    if (!take_over(turbo, left / mcu, (stop + mcu - 1) / mcu)) ERREXIT1(info, JERR_OUT_OF_MEMORY, 0);
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
    if (bottom == full_height)
        jpeg_finish_decompress(info); // reads on to the end, where a marker may be missing
    else
        jpeg_abort_decompress(info);
    return turbo->errors.num_warnings != 0;
}

// ---- Encoding -------------------------------------------------------------------------------------------

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
    info->image_height = height, info->image_width = width;
    info->input_components = 3, info->in_color_space = JCS_RGB;
    jpeg_set_defaults(info);
    jpeg_set_quality(info, quality, TRUE);
    info->dct_method = JDCT_ISLOW;
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

// ---- Shrinking ------------------------------------------------------------------------------------------

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

// Shrink a JPEG to a baseline one, 4:2:0, plane by plane: colours are neither enlarged nor converted.
//
// Returns the bytes in `out`, or 0 where the JPEG is not of luma and two colour planes, shrinks too far, or has what
// libjpeg finds an error in or warns of. `capacity` is as for encoding.
PUBLIC uint64_t fastpsl_turbo_shrink(
    Turbo *turbo, const uint8_t *jpeg, uint64_t num_bytes, uint32_t denominator, // decoded at 1 / denominator
    uint32_t height, uint32_t width, int quality, uint8_t *out, uint64_t capacity
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
    turbo->errors.num_warnings = 0;
    jpeg_mem_src(info, jpeg, num_bytes);
    jpeg_read_header(info, TRUE);
    if (info->jpeg_color_space != JCS_YCbCr || info->num_components != 3) ERREXIT(info, JERR_CONVERSION_NOTIMPL);
    info->raw_data_out = TRUE;
    info->dct_method = JDCT_ISLOW;
    info->scale_num = 1, info->scale_denom = denominator;
    jpeg_start_decompress(info);
    if (!take_over(turbo, 0, info->MCUs_per_row)) ERREXIT1(info, JERR_OUT_OF_MEMORY, 0);
    Plane planes[3], small[3];
    for (int c = 0; c < 3; c++) {
        planes[c] = large_plane(info, c, height, width);
        small[c] = small_plane(c, height, width);
    }
    if (!place(turbo, 1, planes) || !place(turbo, 0, small)) ERREXIT1(info, JERR_OUT_OF_MEMORY, 0);
    decode_planes(info, planes);
    jpeg_finish_decompress(info);
    if (turbo->errors.num_warnings) return 0;
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
    to->image_height = height, to->image_width = width;
    to->input_components = 3, to->in_color_space = JCS_YCbCr;
    jpeg_set_defaults(to);
    jpeg_set_quality(to, quality, TRUE);
    to->dct_method = JDCT_ISLOW;
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
