// Random words and the boxes of random crops. The bindings are in c_draws.py, the definitions in draws.py and
// crops.py, where NumPy computes the same numbers.

#include <math.h>
#include <stdint.h>

#define PUBLIC __attribute__((visibility("default")))
#define TRIES 10 // of a random resized crop, as in torchvision

typedef int32_t Box[4]; // top, left, height, width

// Philox4x32-10 for one counter and key.
static void philox(uint32_t counter[4], uint32_t k0, uint32_t k1) {
    for (int round = 0; round < 10; round++) {
        uint64_t product_0 = (uint64_t)0xD2511F53 * counter[0], product_1 = (uint64_t)0xCD9E8D57 * counter[2];
        counter[0] = (uint32_t)(product_1 >> 32) ^ counter[1] ^ k0;
        counter[1] = (uint32_t)product_1;
        counter[2] = (uint32_t)(product_0 >> 32) ^ counter[3] ^ k1;
        counter[3] = (uint32_t)product_0;
        k0 += 0x9E3779B9, k1 += 0xBB67AE85;
    }
}

// Write each index's first `num` words, uint32 [num_rows, num].
PUBLIC void fastpsl_words(
    const int64_t *indices, int64_t num_rows, int64_t num, uint32_t epoch, uint32_t place, uint32_t k0, uint32_t k1,
    uint32_t *out
) {
    for (int64_t row = 0; row < num_rows; row++) {
        uint64_t index = (uint64_t)indices[row];
        for (int64_t i = 0; i < num; i += 4, place++) {
            uint32_t block[4] = {(uint32_t)index, (uint32_t)(index >> 32), epoch, place};
            philox(block, k0, k1);
            for (int64_t lane = 0; lane < 4 && i + lane < num; lane++) *out++ = block[lane];
        }
        place -= (uint32_t)((num + 3) / 4);
    }
}

static double uniform(uint32_t word) { return (double)(word >> 8) * 0x1p-24; }

static int32_t below(uint32_t word, int32_t high) { return (int32_t)((uint64_t)word * (uint64_t)high >> 32); }

static int32_t limited(double side, int32_t most) {
    return side < 1 ? 1 : side > most ? most : (int32_t)side;
}

// Write the boxes of random resized crops from 4 * TRIES words for each image.
PUBLIC void fastpsl_random_resized(
    const uint32_t *words, const int32_t *heights, const int32_t *widths, int64_t num, double scale_low,
    double scale_high, double ratio_low, double ratio_high, Box *out
) {
    double log_low = log(ratio_low), log_high = log(ratio_high);
    for (int64_t i = 0; i < num; i++) {
        int32_t height = heights[i], width = widths[i], *box = out[i];
        int is_found = 0;
        for (int try = 0; try < TRIES && !is_found; try++) {
            const uint32_t *tried = words + (i * TRIES + try) * 4; // area, ratio, top, left
            double area = (double)((int64_t)height * width) * (scale_low + (scale_high - scale_low) * uniform(tried[0]));
            double ratio = exp(log_low + (log_high - log_low) * uniform(tried[1]));
            double box_width = rint(sqrt(area * ratio)), box_height = rint(sqrt(area / ratio));
            is_found = 0 < box_width && box_width <= width && 0 < box_height && box_height <= height;
            if (!is_found) continue;
            box[2] = (int32_t)box_height, box[3] = (int32_t)box_width;
            box[0] = below(tried[2], height - box[2] + 1), box[1] = below(tried[3], width - box[3] + 1);
        }
        if (is_found) continue;
        double ratio = (double)width / height;
        box[2] = ratio < ratio_low ? limited(rint(width / ratio_low), height) : height;
        box[3] = ratio > ratio_high ? limited(rint(height * ratio_high), width) : width;
        box[0] = (height - box[2]) / 2, box[1] = (width - box[3]) / 2;
    }
}
