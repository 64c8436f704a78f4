// Damage JPEGs of at most 64 px, or their packed coefficients, and decode parts of them with all kinds of decoders.
// toolchain/fuzz.sh builds it with sanitizers and runs it:
//
//     fuzz coefficients|jpeg CASES [FIRST]
//
// A case is a function of its number. What must hold: no access outside of the bytes that a decoder is promised, no
// undefined behaviour, one status from each kind of processor's decoder, and equal pixels where it is good. Where a
// damaged JPEG can be packed, that has the pixels of the JPEG. It ends with a line of JSON, or by a signal at the first
// case that fails.

#include "handle.h"

extern int fastpsl_unpack_kind;
int fastpsl_unpack_best(void);
void *fastpsl_turbo_open(void);
void fastpsl_turbo_close(Turbo *turbo);
uint64_t fastpsl_coefficients_pack(Turbo *turbo, const uint8_t *jpeg, uint64_t num_bytes, const uint8_t **out);

#define MOST_PX 64
#define MOST_BYTES (1 << 17)
#define NUM_SOUND 64
#define CASES_OF_A_SEED 100000 // whose sound samples are the same

typedef struct {
    uint8_t bytes[MOST_BYTES];
    uint64_t num_bytes;
    uint32_t height, width;
} Sound;

static Sound sounds[NUM_SOUND];
static uint64_t state;

static uint64_t next(void) { // splitmix64
    uint64_t z = state += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

static uint32_t below(uint64_t limit) { return (uint32_t)(next() % limit); }

// Make a JPEG: of one or three components, any usual sampling, plain, progressive, optimised or with restart markers.
static void make_jpeg(Sound *sound) {
    static const int samplings[6][2] = {{1, 1}, {2, 1}, {2, 2}, {1, 2}, {4, 1}, {3, 1}};
    struct jpeg_compress_struct info;
    struct jpeg_error_mgr errors;
    info.err = jpeg_std_error(&errors);
    jpeg_create_compress(&info);
    unsigned char *memory = sound->bytes;
    unsigned long num_bytes = MOST_BYTES;
    jpeg_mem_dest(&info, &memory, &num_bytes);
    sound->height = 1 + below(MOST_PX), sound->width = 1 + below(MOST_PX);
    info.image_height = sound->height, info.image_width = sound->width;
    info.input_components = below(4) ? 3 : 1;
    info.in_color_space = info.input_components == 3 ? JCS_RGB : JCS_GRAYSCALE;
    jpeg_set_defaults(&info);
    if (info.input_components == 3 && !below(6)) jpeg_set_colorspace(&info, JCS_RGB);
    jpeg_set_quality(&info, 1 + (int)below(100), TRUE);
    uint32_t sampling = below(6);
    info.comp_info[0].h_samp_factor = samplings[sampling][0], info.comp_info[0].v_samp_factor = samplings[sampling][1];
    jpeg_scan_info scans[3] = {{0}};
    if (!below(4)) {
        jpeg_simple_progression(&info);
    } else if (!below(3)) { // a scan a component
        for (int i = 0; i < info.num_components; i++)
            scans[i].comps_in_scan = 1, scans[i].component_index[0] = i, scans[i].Se = 63;
        info.scan_info = scans, info.num_scans = info.num_components;
    }
    info.optimize_coding = !below(4), info.restart_interval = below(3) ? 0 : 1 + below(9);
    jpeg_start_compress(&info, TRUE);
    uint32_t noise = below(256);
    while (info.next_scanline < sound->height) {
        uint8_t row[3 * MOST_PX];
        for (uint32_t x = 0; x < 3 * sound->width; x++)
            row[x] = (uint8_t)(3 * info.next_scanline + 2 * x + (noise ? below(noise) : 0));
        JSAMPROW rows = row;
        jpeg_write_scanlines(&info, &rows, 1);
    }
    jpeg_finish_compress(&info);
    jpeg_destroy_compress(&info);
    if (memory != sound->bytes) abort();
    sound->num_bytes = num_bytes;
}

// Copy a sound sample to memory of its own, damaged, with `padding` bytes behind it.
static uint8_t *damaged(const Sound *sound, uint64_t *num_bytes, uint64_t padding) {
    static uint8_t room[MOST_BYTES + 1024];
    uint64_t num = sound->num_bytes;
    memcpy(room, sound->bytes, num);
    for (uint32_t left = 1 + below(below(4) ? 2 : 12); left; left--) {
        uint64_t at = below(below(2) ? num : num < 700 ? num : 700), count = 1 + below(below(8) ? 4 : 64);
        if (count > num - at) count = num - at;
        switch (below(8)) {
        case 0: room[at] = (uint8_t)next(); break;
        case 1: room[at] ^= (uint8_t)(1 << below(8)); break;
        case 2: memset(room + at, below(2) ? 0xFF : 0, count); break;
        case 3: // a part is missing
            memmove(room + at, room + at + count, num - at - count);
            num -= count;
            break;
        case 4: // or is new
            if (count > 64 || num + count > sizeof room) break;
            memmove(room + at + count, room + at, num - at);
            for (uint64_t i = 0; i < count; i++) room[at + i] = (uint8_t)next();
            num += count;
            break;
        case 5: // or comes from elsewhere
            memmove(room + at, room + below(num - count + 1), count);
            break;
        case 6: { // a number is another
            uint32_t values[8] = {0, 1, 0x7fffffff, 0x80000000, 0xffffffff, (uint32_t)num, below(1 << 16), below(64)};
            memcpy(room + (at & ~(uint64_t)3), &values[below(8)], num - (at & ~(uint64_t)3) < 4 ? 1 : 4);
            break;
        }
        default:
            if (!below(4) && num > 1) num = 1 + below(num - 1);
        }
        if (!num) num = 1;
    }
    uint8_t *copy = malloc(num + padding);
    memcpy(copy, room, num);
    memset(copy + num, 0xA5, padding);
    *num_bytes = num;
    return copy;
}

// Decode a part of a sample; `pixels` is written anew.
static int decoded(
    Turbo *turbo, const uint8_t *sample, uint64_t num_bytes, const Sound *sound, const int64_t region[4],
    uint32_t denominator, int is_packed, uint8_t *pixels, int64_t placed[4]
) {
    memset(placed, 0, 4 * sizeof *placed);
    return fastpsl_turbo_decode(
        turbo, sample, num_bytes, sound->height, sound->width, denominator, 1, is_packed, region, pixels, placed
    );
}

static void refuse_case(uint64_t number, const char *what) {
    fprintf(stderr, "case %llu: %s\n", (unsigned long long)number, what);
    abort();
}

// Make sound samples by a seed.
static void make_sounds(Turbo *turbo, int is_packed, uint64_t seed) {
    state = seed;
    for (int i = 0; i < NUM_SOUND; i++) {
        make_jpeg(&sounds[i]);
        const uint8_t *packed = NULL;
        uint64_t num = fastpsl_coefficients_pack(turbo, sounds[i].bytes, sounds[i].num_bytes, &packed);
        if (!num || num > MOST_BYTES) refuse_case(seed, "a sound JPEG is not packed");
        if (is_packed) memcpy(sounds[i].bytes, packed, num), sounds[i].num_bytes = num;
    }
}

static int are_equal(const uint8_t *pixels[2], const int64_t placed[2][4]) {
    return !memcmp(placed[0], placed[1], sizeof placed[0])
        && !memcmp(pixels[0], pixels[1], (size_t)(placed[0][2] * placed[0][3] * 3));
}

int main(int count, char **words) {
    if (count < 3) return fprintf(stderr, "fuzz coefficients|jpeg CASES [FIRST]\n"), 2;
    int is_packed = !strcmp(words[1], "coefficients"), best = fastpsl_unpack_best();
    uint64_t num_cases = strtoull(words[2], NULL, 10), first = count > 3 ? strtoull(words[3], NULL, 10) : 0;
    uint64_t num_good = 0, num_packed = 0;
    Turbo *turbo = fastpsl_turbo_open();
    for (uint64_t i = first; i < first + num_cases; i++) {
        if (i == first || i % CASES_OF_A_SEED == 0) {
            fprintf(stderr, "case %llu\n", (unsigned long long)i);
            make_sounds(turbo, is_packed, i / CASES_OF_A_SEED);
        }
        state = i << 20, next();
        const Sound *sound = &sounds[below(NUM_SOUND)];
        uint32_t denominator = below(3) ? 1 : 1u << below(4);
        int64_t rows = (sound->height + denominator - 1) / denominator;
        int64_t columns = (sound->width + denominator - 1) / denominator;
        int64_t region[4] = {below((uint64_t)rows), below((uint64_t)columns)}, placed[2][4];
        region[2] = 1 + below((uint64_t)(rows - region[0])), region[3] = 1 + below((uint64_t)(columns - region[1]));
        if (!below(3)) region[0] = region[1] = 0, region[2] = rows, region[3] = columns;
        uint64_t num_bytes;
        uint8_t *sample = damaged(sound, &num_bytes, is_packed ? PACKED_PADDING : 0);
        uint8_t *pixels[2] = {calloc(1, (size_t)(rows * columns * 3)), calloc(1, (size_t)(rows * columns * 3))};
        fastpsl_unpack_kind = 0;
        int status = decoded(turbo, sample, num_bytes, sound, region, denominator, is_packed, pixels[0], placed[0]);
        num_good += !status;
        if (is_packed)
            for (fastpsl_unpack_kind = 1; fastpsl_unpack_kind <= best; fastpsl_unpack_kind++) {
                if (decoded(turbo, sample, num_bytes, sound, region, denominator, 1, pixels[1], placed[1]) != status)
                    refuse_case(i, "the decoders' statuses differ");
                if (!status && !are_equal((const uint8_t **)pixels, placed)) refuse_case(i, "pixels differ");
            }
        else {
            const uint8_t *packed;
            uint64_t num = fastpsl_coefficients_pack(turbo, sample, num_bytes, &packed);
            num_packed += num > 0;
            if (num) {
                uint8_t *copy = malloc(num + PACKED_PADDING);
                memcpy(copy, packed, num);
                memset(copy + num, 0xA5, PACKED_PADDING);
                fastpsl_unpack_kind = -1;
                int other = decoded(turbo, copy, num, sound, region, denominator, 1, pixels[1], placed[1]);
                if (!status && (other || !are_equal((const uint8_t **)pixels, placed)))
                    refuse_case(i, "what is packed has other pixels");
                free(copy);
            }
        }
        free(sample), free(pixels[0]), free(pixels[1]);
    }
    fastpsl_turbo_close(turbo);
    printf(
        "{\"kind\": \"%s\", \"first\": %llu, \"cases\": %llu, \"good\": %llu, \"packed\": %llu}\n", words[1],
        (unsigned long long)first, (unsigned long long)num_cases, (unsigned long long)num_good,
        (unsigned long long)num_packed
    );
    return 0;
}
