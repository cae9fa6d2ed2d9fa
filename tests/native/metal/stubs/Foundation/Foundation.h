#pragma once
// What native/metal/apple_gpu.mm uses of Foundation and libdispatch, for a check of its syntax where there is no Apple
// system. Declarations only, ours; what Apple's say is assumed, not known.
#include <stddef.h>
#include <stdint.h>

typedef signed char BOOL;
#define YES ((BOOL) 1)
#define NO ((BOOL) 0)
#define nil nullptr
typedef unsigned long NSUInteger;

__attribute__((objc_root_class))
@interface NSObject
+ (instancetype)alloc;
- (instancetype)init;
@end

@interface NSString : NSObject
+ (instancetype)stringWithUTF8String:(const char *)bytes;
- (const char *)UTF8String;
@end

@interface NSError : NSObject
- (NSString *)localizedDescription;
@end

@protocol OS_dispatch_data
@end
typedef NSObject<OS_dispatch_data> * dispatch_data_t;
typedef NSObject * dispatch_queue_t;
typedef void (^dispatch_block_t)(void);
#define DISPATCH_DATA_DESTRUCTOR_DEFAULT ((dispatch_block_t) 0)
extern "C" dispatch_data_t dispatch_data_create(const void * buffer, size_t size, dispatch_queue_t queue,
                                                dispatch_block_t destructor);
