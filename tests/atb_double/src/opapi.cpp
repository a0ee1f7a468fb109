// libopapi.so, whose presence alone matters.
extern "C" __attribute__((visibility("default"))) int atb_double_opapi() { return 0; }
