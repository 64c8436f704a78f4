// A Huffman decoder of JPEG scans, in the place of libjpeg-turbo's, which takes two thirds of a decode's time.
//
// It is for the usual scan: baseline, of all components, also in parts between restart markers. Others take libjpeg's
// own.

#include "handle.h"

#define LIKELY(condition) __builtin_expect(!!(condition), 1)
#define END_OF_BLOCK 64 // a run that ends the block
#define PADDING 4096    // zeros after the scan's bytes: more than the largest MCU takes
#define NO_ROOM 127
#define END 128

const uint8_t turbo_zigzag[64] = {
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
                block[turbo_zigzag[k + step.place[1]]] = step.value[1];
                block[turbo_zigzag[k + step.place[0]]] = step.value[0];
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
        if (block && size) block[turbo_zigzag[k]] = (JCOEF)value;
        k++;
    }
    return 1;
}

// Begin the scan, or go on with the part after the next restart marker.
static void begin_part(Scan *scan, uint32_t restart_interval) {
    scan->bits = (Bits){.next = scan->part ? scan->end : scan->bytes};
    scan->end = scan->bytes + ((const uint32_t *)scan->ends)[scan->part++];
    scan->num_left = restart_interval && restart_interval < scan->num_after ? restart_interval : scan->num_after;
    scan->num_after -= scan->num_left;
    memset(scan->predictor, 0, sizeof scan->predictor);
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
        scan->predictor[scan->component[b]] += (uint32_t)value; // a damaged scan's sum may pass any limit
        if (blocks) (*blocks[b])[0] = (JCOEF)scan->predictor[scan->component[b]];
        int is_whole = blocks && is_inside && scan->needs_ac[b] ? take_ac(scan->ac[b], &bits, *blocks[b])
                                                                 : take_ac(scan->ac[b], &bits, NULL);
        if (!is_whole) ERREXIT(info, JERR_INPUT_EOF);
    }
    // Zeros or the next part stand behind the end; some of them may pass before this sees it.
    const uint8_t *read = bits.next - (bits.num_bits >> 3);
    if (read > scan->end) ERREXIT(info, JERR_INPUT_EOF);
    scan->bits = bits;
    if (!--scan->num_left) {
        if (read < scan->end) WARNMS(info, JWRN_EXTRANEOUS_DATA);
        if (scan->num_after) begin_part(scan, info->restart_interval);
    }
    return TRUE;
}

void turbo_set_entropy_decoder(j_decompress_ptr info, boolean (*decode)(j_decompress_ptr, JBLOCKROW *)) {
    // The beginning of jpegint.h's struct jpeg_entropy_decoder, the same since version 6b.
    struct {
        void (*start_pass)(j_decompress_ptr);
        boolean (*decode_mcu)(j_decompress_ptr, JBLOCKROW *);
    } *entropy = (void *)info->entropy;
    entropy->decode_mcu = decode;
}

int turbo_take_over(Turbo *turbo, uint32_t first_column, uint32_t stop_column) {
    j_decompress_ptr info = &turbo->decompress;
    Scan *scan = &turbo->scan;
    if (info->progressive_mode || info->arith_code) return 1;
    if (info->comps_in_scan != info->num_components || info->buffered_image) return 1;
    struct jpeg_source_mgr *source = info->src;
    const uint8_t *byte = source->next_input_byte, *stop = byte + source->bytes_in_buffer;
    if (!turbo_reserve(&scan->bytes, &scan->capacity, source->bytes_in_buffer + PADDING)) return 0;
    uint64_t num_mcus = (uint64_t)info->MCUs_per_row * info->MCU_rows_in_scan;
    uint64_t num_parts = info->restart_interval ? (num_mcus - 1) / info->restart_interval + 1 : 1, part = 0;
    if (num_parts > source->bytes_in_buffer / 3 + 1) return 1; // a part has a byte, and a marker two
    if (!turbo_reserve(&scan->ends, &scan->ends_capacity, num_parts * sizeof(uint32_t))) return 0;
    uint32_t *ends = (uint32_t *)scan->ends;
    uint8_t *out = scan->bytes;
    while (byte < stop) { // 0xFF in data is followed by 0; by anything else it is a marker
        const uint8_t *found = memchr(byte, 0xFF, stop - byte);
        const uint8_t *to = found ? found : stop;
        memcpy(out, byte, to - byte);
        out += to - byte, byte = to;
        if (!found) break;
        while (byte < stop && *byte == 0xFF) byte++;
        if (byte == stop) break;
        if (part + 1 < num_parts && *byte == (JPEG_RST0 | (part & 7))) {
            ends[part++] = (uint32_t)(out - scan->bytes), byte++;
            continue;
        }
        if (*byte) {
            if (*byte != JPEG_EOI || part + 1 < num_parts) return 1; // libjpeg knows what to make of it
            byte--;
            break;
        }
        // After fill bytes in the midst of data, libjpeg's fast loop leaves values of its own.
        if (byte - to > 1) return 1;
        *out++ = 0xFF, byte++;
    }
    if (byte == stop) WARNMS(info, JWRN_JPEG_EOF);
    ends[part] = (uint32_t)(out - scan->bytes);
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
    scan->part = 0, scan->num_after = num_mcus;
    begin_part(scan, info->restart_interval);
    scan->column = 0, scan->num_columns = info->MCUs_per_row;
    scan->first_column = first_column, scan->stop_column = stop_column;
    source->bytes_in_buffer = stop - byte, source->next_input_byte = byte; // libjpeg goes on at the marker
    turbo_set_entropy_decoder(info, decode_mcu);
    return 1;
}
