// Looks values up with the kernel's own code, compiled as plain C++.
//
//     lookup_driver LEVELS THRESHOLDS X Y    (raw float32 files; Y is written)

#include <cstdio>
#include <exception>

#include "files.h"
#include "htdq/codebook.h"

int main(int argc, char** argv) {
    if (argc != 5) {
        std::fprintf(stderr, "usage: %s LEVELS THRESHOLDS X Y\n", argv[0]);
        return 2;
    }
    try {
        auto const levels = files::read<float>(argv[1]);
        auto const thresholds = files::read<float>(argv[2]);
        auto values = files::read<float>(argv[3]);
        qvd::HtdqCodebook codebook;
        std::string error;
        if (!qvd::make_codebook({levels.data(), static_cast<int64_t>(levels.size())},
                                {thresholds.data(), static_cast<int64_t>(thresholds.size())},
                                codebook, error)) {
            std::printf("%s\n", error.c_str());
            return 3;
        }
        qvd::HtdqTable const& table = codebook.table;
        for (float& value : values) {
            value = qvd::htdq_level(qvd::htdq_search(table.cells, table.depth, value));
        }
        files::write(argv[4], values);
    } catch (std::exception const& error) {
        std::fprintf(stderr, "%s\n", error.what());
        return 1;
    }
    return 0;
}
