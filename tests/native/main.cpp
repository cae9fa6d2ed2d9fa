#include <exception>

#include "check.h"

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

int main() {
    int failed = 0;
    for (const TestCase & test : test_cases()) {
        const int before = failures;
        try {
            test.body();
        } catch (const std::exception & error) {
            test_failed(test.name, 0, std::string("threw ") + error.what());
        }
        failed += failures != before;
        std::printf("%s %s\n", failures == before ? "ok  " : "FAIL", test.name);
    }
    std::printf("%zu passed, %d failed\n", test_cases().size() - size_t(failed), failed);
    return failed != 0 || test_cases().empty();
}
