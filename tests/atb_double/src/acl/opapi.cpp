// libopapi.so, whose presence alone matters.
extern "C" int atb_double_opapi() { return 0; }
