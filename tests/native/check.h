#pragma once
// A minimal test registry: TEST bodies run one by one, a failed CHECK is counted and told with its place.
#include <cstdio>
#include <string>
#include <vector>

struct TestCase {
    const char * name;
    void (*body)();
};

std::vector<TestCase> & test_cases();
void test_failed(const char * file, int line, const std::string & what);

// How many random cases to run: the environment variable ZIPCACHE_TEST_CASES, or as many as is usual.
int n_cases(int usual);
// Of random cases; another in each run, told when a test fails, and taken from ZIPCACHE_TEST_SEED if that is set.
unsigned test_seed();

struct TestRegistration {
    TestRegistration(const char * name, void (*body)()) { test_cases().push_back({name, body}); }
};

#define TEST(name)                                                     \
    static void test_##name();                                         \
    static const TestRegistration register_##name(#name, test_##name); \
    static void test_##name()

#define CHECK(condition)                                 \
    do {                                                 \
        if (!(condition)) {                              \
            test_failed(__FILE__, __LINE__, #condition); \
        }                                                \
    } while (0)

// The expression throws Type, and its message holds the text.
#define CHECK_THROWS(expression, Type, text)                                                        \
    do {                                                                                            \
        std::string caught_ = "nothing";                                                            \
        try {                                                                                       \
            (void) (expression);                                                                    \
        } catch (const Type & error_) {                                                             \
            caught_ = error_.what();                                                                \
            if (caught_.find(text) != std::string::npos) {                                          \
                break;                                                                              \
            }                                                                                       \
        }                                                                                           \
        test_failed(__FILE__, __LINE__,                                                             \
                    std::string(#expression " throws '") + caught_ + "', wanted '" + (text) + "'"); \
    } while (0)
