#include "attend_case.h"
#include "check.h"

namespace {

// Keys, queries, values and probabilities are rounded to f16: 11 bits against logits of up to 30.
constexpr double kTolerance = 5e-3, kLogSumTolerance = 5e-3;

void check_case(const Case & c, const Difference & worst, Difference & most) {
    const bool right = worst.output < kTolerance && worst.log_sum < kLogSumTolerance && worst.probes;
    CHECK(right);
    if (!right) {
        std::printf("  %g, log sum %g, probes %d: %s\n", worst.output, worst.log_sum, int(worst.probes),
                    described(c).c_str());
    }
    most.output = std::max(most.output, worst.output);
    most.log_sum = std::max(most.log_sum, worst.log_sum);
}

}  // namespace

TEST(metal_attend_kv_matches_the_reference) {
    std::mt19937 random(test_seed());
    Difference most;
    for (int i = 0; i < n_cases(25); ++i) {
        const Case c = random_case(random);
        Buffers buffers;
        const OnDevice d = put_case(buffers, c, 1 + int(random() % 16));
        Difference worst;
        attend(c, d, worst);
        check_case(c, worst, most);
    }
    std::printf("  attend_kv: output off by at most %.2g of its largest, log sum by %.2g\n", most.output, most.log_sum);
}
