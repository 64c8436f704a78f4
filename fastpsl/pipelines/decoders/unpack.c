// A decoder of packed coefficients (coefficients.h), in the place of libjpeg's entropy decoder.
//
// There is one for each kind of processor. All take the same from the streams, and differ in how the values of a block
// come to their places.

#include "handle.h"

#define LIKELY(condition) __builtin_expect(!!(condition), 1)
#define EACH_NIBBLE 0x1111111111111111u

// Bytes behind a sample that may be read: an MCU takes at most 10 * 64 * 2 of a stream, before its end is checked.
_Static_assert(PACKED_PADDING >= 10 * 64 * 2 + 64, "an MCU and what a vector reads beyond it");

// Which loops run, of coefficients and of resizes: 0 in plain C or SSE2, 1 with AVX2, 2 with AVX-512 and VBMI2; -1 is
// the best of this processor's.
PUBLIC int fastpsl_unpack_kind = -1;

INLINE int nibble_of(const uint8_t *stream, uint32_t at) { return stream[at >> 1] >> 4 * (at & 1) & 15; }

// Return 16 nibbles, the first one lowest.
INLINE uint64_t nibbles_of(const uint8_t *stream, uint32_t at) {
    uint64_t word;
    memcpy(&word, stream + (at >> 1), 8);
    int shift = 4 * (at & 1);
    return word >> shift | (uint64_t)stream[(at >> 1) + 8] << 1 << (63 - shift);
}

INLINE int32_t take_wide(const Packed *packed, PackedRow *at) {
    int16_t wide;
    memcpy(&wide, packed->wides + 2 * (uint64_t)at->wides++, 2);
    return wide;
}

// Take a block's mask: bit i stands for the place i + 1 in zigzag order.
INLINE uint64_t take_mask(const Packed *packed, PackedRow *at, int head) {
    int num = head & 15;
    uint64_t word = nibbles_of(packed->masks, at->masks);
    if (num == 15) num = 16;
    at->masks += (uint32_t)num;
    return num < 16 ? word & (((uint64_t)1 << 4 * num) - 1) : word & UINT64_MAX >> 1;
}

INLINE int32_t take_dc(const Packed *packed, PackedRow *at, int head) {
    int32_t difference = (head >> 4 ^ 8) - 8, is_escape = difference == -8;
    int32_t escape = (int8_t)packed->escapes[at->escapes]; // read in any case, so that there is no branch
    at->escapes += (uint32_t)is_escape;
    difference = is_escape ? escape : difference;
    return LIKELY(difference != INT8_MIN) ? difference : take_wide(packed, at);
}

// Take a coefficient that its nibble does not hold.
INLINE int32_t take_large(const Packed *packed, PackedRow *at, int nibble) {
    if (!nibble) return (int8_t)packed->escapes[at->escapes++];
    if (nibble == 8) return take_wide(packed, at);
    int32_t size = 7 + nibble_of(packed->extras, at->extras++);
    return nibble & 8 ? -size : size;
}

// Pass over a block's values.
INLINE void skip_values(const Packed *packed, PackedRow *at, uint64_t mask) {
    int num = __builtin_popcountll(mask);
    for (int first = 0; first < num; first += 16) {
        uint64_t word = nibbles_of(packed->values, at->values + (uint32_t)first);
        if (num - first < 16) { // ones in the place of those of the next block
            uint64_t own = ((uint64_t)1 << 4 * (num - first)) - 1;
            word = (word & own) | (EACH_NIBBLE & ~own);
        }
        uint64_t low = word & EACH_NIBBLE, middle = word >> 1 & EACH_NIBBLE, high = word >> 2 & EACH_NIBBLE;
        uint64_t sign = word >> 3 & EACH_NIBBLE, none = ~(low | middle | high) & EACH_NIBBLE;
        at->extras += (uint32_t)__builtin_popcountll(low & middle & high);
        at->escapes += (uint32_t)__builtin_popcountll(none & ~sign);
        at->wides += (uint32_t)__builtin_popcountll(none & sign);
    }
    at->values += (uint32_t)num;
}

typedef void Unpack(const Packed *packed, PackedRow *at, uint64_t mask, JCOEF *block);

// Take a block's values. `block` is all zeros before; its DC is written over later.
INLINE void unpack_plainly(const Packed *packed, PackedRow *at, uint64_t mask, JCOEF *block) {
    static const int8_t sizes[16] = {0, 1, 2, 3, 4, 5, 6, 0, 0, -1, -2, -3, -4, -5, -6, 0};
    for (; mask; mask &= mask - 1) {
        int nibble = nibble_of(packed->values, at->values++), value = sizes[nibble];
        if (!value) value = take_large(packed, at, nibble);
        block[turbo_zigzag[__builtin_ctzll(mask) + 1]] = (JCOEF)value;
    }
}

static void begin_row(j_decompress_ptr info, Packed *packed) {
    if (packed->row == packed->num_rows) ERREXIT(info, JERR_INPUT_EOF);
    PackedRow end;
    memcpy(&packed->at, packed->table + packed->row * sizeof end, sizeof end);
    memcpy(&packed->stop, packed->table + ++packed->row * sizeof end, sizeof end);
    memcpy(&end, packed->table + packed->num_rows * sizeof end, sizeof end);
    const PackedRow *at = &packed->at, *stop = &packed->stop;
    if (at->masks > stop->masks || stop->masks > end.masks || at->values > stop->values || stop->values > end.values
        || at->extras > stop->extras || stop->extras > end.extras || at->escapes > stop->escapes
        || stop->escapes > end.escapes || at->wides > stop->wides || stop->wides > end.wides)
        ERREXIT(info, JERR_INPUT_EOF);
    memset(packed->predictor, 0, sizeof packed->predictor);
}

// Decode an MCU, or skip it where `blocks` is NULL or its column lies outside of the crop.
INLINE boolean take_mcu(j_decompress_ptr info, JBLOCKROW *blocks, Unpack *unpack) {
    Packed *packed = &((Turbo *)info->client_data)->packed;
    uint32_t column = packed->column;
    if (!column) begin_row(info, packed);
    packed->column = column + 1 < packed->num_columns ? column + 1 : 0;
    if (!blocks || column >= packed->stop_column) return TRUE; // no row needs the end of the one before
    const uint8_t *heads = packed->heads;
    heads += ((uint64_t)(packed->row - 1) * packed->num_columns + column) * (uint64_t)info->blocks_in_MCU;
    PackedRow at = packed->at;
    for (int b = 0; b < info->blocks_in_MCU; b++) {
        uint32_t *predictor = &packed->predictor[packed->component[b]];
        uint64_t mask = take_mask(packed, &at, heads[b]);
        *predictor += (uint32_t)take_dc(packed, &at, heads[b]); // a damaged row's sum may pass any limit
        if (column >= packed->first_column && packed->needs_ac[b])
            unpack(packed, &at, mask, *blocks[b]);
        else
            skip_values(packed, &at, mask);
        (*blocks[b])[0] = (JCOEF)*predictor;
    }
    const PackedRow *stop = &packed->stop;
    if (at.masks > stop->masks || at.values > stop->values || at.extras > stop->extras || at.escapes > stop->escapes
        || at.wides > stop->wides || (!packed->column && memcmp(&at, stop, sizeof at)))
        ERREXIT(info, JERR_INPUT_EOF);
    packed->at = at;
    return TRUE;
}

static boolean take_mcu_plainly(j_decompress_ptr info, JBLOCKROW *blocks) {
    return take_mcu(info, blocks, unpack_plainly);
}

#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>

#define AVX2 __attribute__((target("avx2,bmi,bmi2,popcnt,lzcnt")))
#define AVX512 __attribute__((target("avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,bmi,bmi2,popcnt,lzcnt")))
#define ESCAPE (-128)
#define WIDE (-127)
// The values of nibbles; those that need more have a mark, or 7 and -7.
#define VALUES ESCAPE, 1, 2, 3, 4, 5, 6, 7, WIDE, -1, -2, -3, -4, -5, -6, -7

static uint8_t spread[256][8]; // by a byte of a mask: where its values are, or 0x80
static _Alignas(16) uint8_t gathered[4][4][16]; // by 16 places of a block and 16 of zigzag order: the places, or 0x80
static uint8_t unzigzag[64], count[80]; // by the place in a block, its place in zigzag order; 0, 1, 2 ...

__attribute__((constructor)) static void fill_tables(void) {
    for (int z = 0; z < 64; z++) unzigzag[turbo_zigzag[z]] = (uint8_t)z;
    for (int i = 0; i < 80; i++) count[i] = (uint8_t)i;
    for (int mask = 0; mask < 256; mask++)
        for (int i = 0, num = 0; i < 8; i++) spread[mask][i] = (uint8_t)(mask >> i & 1 ? num++ : 0x80);
    for (int to = 0; to < 4; to++)
        for (int from = 0; from < 4; from++)
            for (int i = 0; i < 16; i++) {
                int z = unzigzag[16 * to + i];
                gathered[to][from][i] = (uint8_t)(z / 16 == from ? z % 16 : 0x80);
            }
}

AVX2 INLINE void unpack_avx2(const Packed *packed, PackedRow *at, uint64_t mask, JCOEF *block) {
    const __m128i values = _mm_setr_epi8(VALUES);
    _Alignas(16) int8_t found[64]; // in zigzag order
    mask <<= 1;
    int num = 0; // bytes of the mask
    for (uint64_t left = mask; left; left >>= 8, num++) {
        // Without pdep, which Zen 1 and 2 have in microcode.
        long long nibbles = (long long)nibbles_of(packed->values, at->values);
        __m128i low = _mm_and_si128(_mm_cvtsi64_si128(nibbles), _mm_set1_epi8(15));
        __m128i high = _mm_and_si128(_mm_cvtsi64_si128(nibbles >> 4), _mm_set1_epi8(15));
        __m128i own = _mm_shuffle_epi8(values, _mm_unpacklo_epi8(low, high));
        own = _mm_shuffle_epi8(own, _mm_loadl_epi64((const __m128i *)spread[left & 255]));
        _mm_storel_epi64((__m128i *)(found + 8 * num), own);
        at->values += (uint32_t)__builtin_popcountll(left & 255);
    }
    memset(found + 8 * num, 0, (size_t)(64 - 8 * num));
    __m128i parts[4];
    uint64_t large = 0;
    for (int i = 0; i < 4; i++) {
        parts[i] = _mm_load_si128((const __m128i *)(found + 16 * i));
        __m128i is_small = _mm_cmpgt_epi8(_mm_set1_epi8(7), _mm_abs_epi8(parts[i])); // |-128| stays -128
        is_small = _mm_andnot_si128(_mm_cmpeq_epi8(parts[i], _mm_set1_epi8(ESCAPE)), is_small);
        large |= (uint64_t)(~(uint32_t)_mm_movemask_epi8(is_small) & 0xffff) << 16 * i;
    }
    for (int to = 0; to < 4; to++) {
        __m128i own = _mm_setzero_si128();
        for (int from = 0; from < 4 && (from < 1 || num > 2 * from); from++)
            own = _mm_or_si128(own, _mm_shuffle_epi8(parts[from], _mm_load_si128((const __m128i *)gathered[to][from])));
        _mm256_storeu_si256((__m256i *)(block + 16 * to), _mm256_cvtepi8_epi16(own));
    }
    for (; large; large &= large - 1) {
        int z = __builtin_ctzll(large), value = found[z];
        int nibble = value == ESCAPE ? 0 : value == WIDE ? 8 : value < 0 ? 15 : 7;
        block[turbo_zigzag[z]] = (JCOEF)take_large(packed, at, nibble);
    }
}

// Return the first 63 nibbles of a stream as bytes, and one that is of no use. A block has no more.
AVX512 INLINE __m512i bytes_of(const uint8_t *stream, uint32_t at) {
    __m512i bytes = _mm512_cvtepu8_epi16(_mm256_loadu_si256((const __m256i *)(stream + (at >> 1))));
    bytes = _mm512_and_si512(_mm512_or_si512(bytes, _mm512_slli_epi16(bytes, 4)), _mm512_set1_epi8(15));
    return _mm512_permutexvar_epi8(_mm512_loadu_si512(count + (at & 1)), bytes);
}

AVX512 INLINE void unpack_avx512(const Packed *packed, PackedRow *at, uint64_t mask, JCOEF *block) {
    const __m512i values = _mm512_broadcast_i32x4(_mm_setr_epi8(VALUES)), seven = _mm512_set1_epi8(7);
    int num = __builtin_popcountll(mask);
    uint64_t are_own = _bzhi_u64(UINT64_MAX, (uint32_t)num);
    __m512i nibbles = bytes_of(packed->values, at->values), found = _mm512_shuffle_epi8(values, nibbles);
    uint64_t have_more = _mm512_mask_cmpeq_epi8_mask(are_own, _mm512_and_si512(nibbles, seven), seven);
    uint64_t are_escapes = _mm512_mask_cmpeq_epi8_mask(are_own, found, _mm512_set1_epi8(ESCAPE));
    uint64_t are_wide = _mm512_mask_cmpeq_epi8_mask(are_own, found, _mm512_set1_epi8(WIDE));
    __m512i more = _mm512_maskz_expand_epi8(have_more, bytes_of(packed->extras, at->extras));
    uint64_t are_negative = _mm512_movepi8_mask(found);
    more = _mm512_mask_sub_epi8(more, are_negative, _mm512_setzero_si512(), more);
    found = _mm512_add_epi8(found, more);
    found = _mm512_mask_expand_epi8(found, are_escapes, _mm512_loadu_si512(packed->escapes + at->escapes));
    found = _mm512_maskz_expand_epi8(mask << 1, found);
    found = _mm512_permutexvar_epi8(_mm512_loadu_si512(unzigzag), found);
    _mm512_storeu_si512(block, _mm512_cvtepi8_epi16(_mm512_castsi512_si256(found)));
    _mm512_storeu_si512(block + 32, _mm512_cvtepi8_epi16(_mm512_extracti64x4_epi64(found, 1)));
    at->values += (uint32_t)num;
    at->extras += (uint32_t)__builtin_popcountll(have_more);
    at->escapes += (uint32_t)__builtin_popcountll(are_escapes);
    for (uint64_t left = _pdep_u64(are_wide, mask << 1); left; left &= left - 1)
        block[turbo_zigzag[__builtin_ctzll(left)]] = (JCOEF)take_wide(packed, at);
}

AVX2 static boolean take_mcu_avx2(j_decompress_ptr info, JBLOCKROW *blocks) {
    return take_mcu(info, blocks, unpack_avx2);
}

AVX512 static boolean take_mcu_avx512(j_decompress_ptr info, JBLOCKROW *blocks) {
    return take_mcu(info, blocks, unpack_avx512);
}

static int best_kind(void) {
    if (__builtin_cpu_supports("avx512vbmi2") && __builtin_cpu_supports("bmi2")) return 2;
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("bmi2") ? 1 : 0;
}
#else
#define take_mcu_avx2 take_mcu_plainly
#define take_mcu_avx512 take_mcu_plainly

static int best_kind(void) { return 0; }
#endif

// Return the best kind that this processor has.
PUBLIC int fastpsl_unpack_best(void) { return best_kind(); }

int turbo_kind(void) { return fastpsl_unpack_kind < 0 ? best_kind() : fastpsl_unpack_kind; }

void turbo_take_packed(Turbo *turbo, const uint8_t *sample, uint32_t first_column, uint32_t stop_column) {
    static boolean (*const kinds[])(j_decompress_ptr, JBLOCKROW *) = {take_mcu_plainly, take_mcu_avx2, take_mcu_avx512};
    j_decompress_ptr info = &turbo->decompress;
    Packed *packed = &turbo->packed;
    struct jpeg_source_mgr *source = info->src;
    const uint8_t *stop = source->next_input_byte + source->bytes_in_buffer;
    uint64_t num_bytes = (uint64_t)(stop - sample);
    uint64_t at = packed_aligned((uint64_t)(source->next_input_byte - sample));
    uint32_t version, num_rows;
    if (at + 8 > num_bytes) ERREXIT(info, JERR_INPUT_EOF);
    memcpy(&version, sample + at, 4), memcpy(&num_rows, sample + at + 4, 4);
    packed->is_other = version != PACKED_VERSION;
    if (packed->is_other || num_rows != info->MCU_rows_in_scan) ERREXIT(info, JERR_INPUT_EOF);
    at = packed_aligned(at + 8);
    packed->table = sample + at, packed->row = 0, packed->num_rows = num_rows;
    uint64_t end_of_table = at + ((uint64_t)num_rows + 1) * sizeof(PackedRow);
    if (end_of_table > num_bytes) ERREXIT(info, JERR_INPUT_EOF);
    PackedRow end;
    memcpy(&end, sample + end_of_table - sizeof end, sizeof end);
    uint64_t sizes[6];
    packed_sizes((uint64_t)num_rows * info->MCUs_per_row * (uint64_t)info->blocks_in_MCU, &end, sizes);
    const uint8_t **streams[6] = {
        &packed->heads, &packed->masks, &packed->values, &packed->extras, &packed->escapes, &packed->wides,
    };
    at = end_of_table;
    for (int i = 0; i < 6; i++) { // six numbers below 2^50 have a sum in 64 bits
        at = packed_aligned(at);
        *streams[i] = sample + (at < num_bytes ? at : 0);
        at += sizes[i];
    }
    if (at != num_bytes) ERREXIT(info, JERR_INPUT_EOF);
    for (int b = 0; b < info->blocks_in_MCU; b++) {
        jpeg_component_info *component = info->cur_comp_info[info->MCU_membership[b]];
        packed->component[b] = info->MCU_membership[b];
        packed->needs_ac[b] = component->component_needed && SCALED_BLOCK(component) > 1;
    }
    packed->column = 0, packed->num_columns = info->MCUs_per_row;
    packed->first_column = first_column, packed->stop_column = stop_column;
    source->bytes_in_buffer = 0;
    turbo_set_entropy_decoder(info, kinds[turbo_kind()]);
}
