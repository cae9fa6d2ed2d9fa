#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <random>

#include "check.h"
#include "ggml-zipcache.h"

namespace {
int failures = 0;
}

std::vector<TestCase> & test_cases() {
    static std::vector<TestCase> cases;
    return cases;
}

void test_failed(const char * file, int line, const std::string & what) {
    ++failures;
    std::printf("%s:%d: %s\n", file, line, what.c_str());
}

int n_cases(int usual) {
    const char * wanted = std::getenv("ZIPCACHE_TEST_CASES");
    return wanted ? static_cast<int>(std::strtol(wanted, nullptr, 10)) : usual;
}

unsigned test_seed() {
    static const char * wanted = std::getenv("ZIPCACHE_TEST_SEED");
    static const unsigned seed = wanted ? unsigned(std::strtoul(wanted, nullptr, 10)) : std::random_device{}();
    return seed;
}

// Runs the tests whose names hold one of the arguments; without arguments, all.
int main(int argc, char ** argv) {
    std::printf("kernels: %s\n", ggml_zipcache_cpu_name(ggml_zipcache_cpu_level()));
    int failed = 0, run = 0;
    for (const TestCase & test : test_cases()) {
        const auto named = [&](const char * part) { return std::strstr(test.name, part) != nullptr; };
        if (argc > 1 && std::none_of(argv + 1, argv + argc, named)) {
            continue;
        }
        ++run;
        const int before = failures;
        try {
            test.body();
        } catch (const std::exception & error) {
            test_failed(test.name, 0, std::string("threw ") + error.what());
        }
        failed += failures != before;
        std::printf("%s %s\n", failures == before ? "ok  " : "FAIL", test.name);
    }
    std::printf("%d passed, %d failed\n", run - failed, failed);
    if (failed) {
        std::printf("ZIPCACHE_TEST_SEED=%u repeats the random cases\n", test_seed());
    }
    return failed != 0 || run == 0;
}
