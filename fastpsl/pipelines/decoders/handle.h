// The handle of one thread: libjpeg's structs, and the scan that huffman.c decodes.

#include <setjmp.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <jpeglib.h>
#include <jerror.h>

#include "coefficients.h"
#include "turbo.h"
#ifndef LIBJPEG_TURBO_VERSION_NUMBER
#error "libjpeg-turbo is needed; this is another libjpeg"
#endif

#if JPEG_LIB_VERSION >= 70 // the interface of libjpeg 7 and 8, as Ubuntu builds it
#define SCALED_BLOCK(component) (component)->DCT_h_scaled_size
#define MIN_SCALED_BLOCK(info) (info)->min_DCT_h_scaled_size
#else
#define SCALED_BLOCK(component) (component)->DCT_scaled_size
#define MIN_SCALED_BLOCK(info) (info)->min_DCT_scaled_size
#endif

#define LOOKUP_BITS 10
#define NUM_TABLES 4 // of DC and of AC, as JPEG allows

// What `LOOKUP_BITS` bits tell of a block's AC values. `room` is how many places they take, with the one of the
// end's mark if it is among them; NO_ROOM where the bits tell too little. `bits` has END where the block ends.
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
    uint8_t *bytes; // the scan without the stuffed zeros, then zeros
    size_t capacity;
    uint8_t *ends; // uint32 each: of its parts, between which restart markers were
    size_t ends_capacity;
    const uint8_t *end; // of the present part
    Bits bits;
    uint32_t predictor[MAX_COMPS_IN_SCAN];
    int component[D_MAX_BLOCKS_IN_MCU];
    int needs_ac[D_MAX_BLOCKS_IN_MCU];
    const HuffmanTable *dc[D_MAX_BLOCKS_IN_MCU], *ac[D_MAX_BLOCKS_IN_MCU];
    HuffmanTable tables[2][NUM_TABLES];
    uint32_t column, num_columns, first_column, stop_column; // MCUs; those outside of the crop are skipped
    uint64_t part, num_left, num_after;                      // the next part; MCUs of this one, and of those after it
} Scan;

// What unpack.c decodes, and how far.
typedef struct {
    const uint8_t *table, *heads, *masks, *values, *extras, *escapes, *wides; // coefficients.h; the bytes may be unaligned
    uint32_t row, num_rows;                                  // of MCUs; `row` is the one after the present
    PackedRow at, stop;                                      // what comes next of the present row, and where it ends
    uint32_t predictor[MAX_COMPS_IN_SCAN];
    int component[D_MAX_BLOCKS_IN_MCU], needs_ac[D_MAX_BLOCKS_IN_MCU];
    uint32_t column, num_columns, first_column, stop_column; // MCUs; those outside of the crop are skipped
    int is_other;                                            // whether the sample is of another version
} Packed;

struct Turbo {
    struct jpeg_decompress_struct decompress; // first: libjpeg's pointer to it is ours
    struct jpeg_compress_struct compress;
    struct jpeg_error_mgr errors;
    struct jpeg_progress_mgr progress;
    jmp_buf escape;
    Scan scan;
    Packed packed;
    uint8_t *memory[2];
    size_t capacities[2];
};

// Read a JPEG's header into a new struct. One that is used again keeps the tables of the image before, and libjpeg
// decodes with them where a JPEG lacks its own. Huffman tables that are missing are the standard ones then.
void turbo_read_header(Turbo *turbo, const uint8_t *jpeg, uint64_t num_bytes);

// Let our Huffman decoder read the scan that begins, if it is of the usual kind. Return 0 where memory lacks.
// The columns are those of MCUs; values of the others are skipped.
int turbo_take_over(Turbo *turbo, uint32_t first_column, uint32_t stop_column);

// Let unpack.c decode the scan that begins, of a sample that PACKED_PADDING bytes follow. libjpeg's error is raised for
// one that is damaged.
void turbo_take_packed(Turbo *turbo, const uint8_t *sample, uint32_t first_column, uint32_t stop_column);

// Let `decode` read the scan's MCUs in the place of libjpeg's own.
void turbo_set_entropy_decoder(j_decompress_ptr info, boolean (*decode)(j_decompress_ptr, JBLOCKROW *));

extern const uint8_t turbo_zigzag[64] __attribute__((visibility("hidden")));

// Set a baseline JPEG, 4:2:0, with the accurate DCT.
void turbo_set_encoder(
    j_compress_ptr info, uint32_t height, uint32_t width, J_COLOR_SPACE colours, int quality
);
