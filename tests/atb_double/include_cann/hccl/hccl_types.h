#ifndef ATB_DOUBLE_HCCL_HCCL_TYPES_H
#define ATB_DOUBLE_HCCL_HCCL_TYPES_H

typedef void* HcclComm;

#endif
