// The layout of packed coefficients: a JPEG without its entropy coding. pack.c writes it, unpack.c reads it, and
// image/coefficients.py makes a JPEG of it again.
//
// A sample begins with a JPEG's segments up to its one scan: baseline, of 1 or 3 components, with quantisation tables,
// and with Huffman tables of one code each, which only libjpeg asks for. What follows begins at multiples of 16 bytes,
// with zeros before it, and numbers are little-endian:
//
//     prologue    uint32: PACKED_VERSION, rows of MCUs
//     table       a PackedRow for each row and one for the end: where the row begins in each stream but the first
//     heads       a byte for each block, in the order of a scan. Its low half tells how many nibbles of its mask are
//                 stored: that many, or 16 for 15. The high half is the difference of DC, -7 to 7, or -8: an escape
//     masks       nibbles: which of the 63 AC coefficients are not zero, in zigzag order, from the lowest bit
//     values      a nibble for each of these: 1 to 6 and, with 8 added, -1 to -6. 7 and 15 stand for 7 to 22 and for
//                 -7 to -22, whose rest is in `extras`; 0 for an escape; 8 for a number in `wides`
//     extras      nibbles
//     escapes     int8. Where one of DC is -128, the number is in `wides`
//     wides       int16
//
// DC's differences begin anew in each row of MCUs, so rows can be decoded apart. Blocks that a component has beyond its
// own end, to fill up an MCU, are empty. In each byte the low nibble comes first.

#define PACKED_VERSION 1 // image/coefficients.py has this and the next, too
#define PACKED_ALIGNMENT 16
#define PACKED_MOST_DC 1024 // DC is -1024 to 1023, and AC -1023 to 1023, as a baseline JPEG can have them
#define PACKED_MOST_AC 1023

typedef struct {
    uint32_t masks, values, extras; // in nibbles
    uint32_t escapes;               // in bytes
    uint32_t wides;                 // in numbers
} PackedRow;

// Write the bytes of each stream. `end` is the table's last row.
static inline void packed_sizes(uint64_t num_blocks, const PackedRow *end, uint64_t sizes[6]) {
    sizes[0] = num_blocks, sizes[1] = ((uint64_t)end->masks + 1) / 2, sizes[2] = ((uint64_t)end->values + 1) / 2;
    sizes[3] = ((uint64_t)end->extras + 1) / 2, sizes[4] = end->escapes, sizes[5] = 2 * (uint64_t)end->wides;
}

static inline uint64_t packed_aligned(uint64_t num_bytes) {
    return (num_bytes + PACKED_ALIGNMENT - 1) / PACKED_ALIGNMENT * PACKED_ALIGNMENT;
}
