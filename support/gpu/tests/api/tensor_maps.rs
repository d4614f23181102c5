//! Tensor maps: what the hardware allows.

use crate::common::for_each_device_from;
use v3_gpu::{Device, DevicePtr, Error, OutOfBoundsFill, Swizzle, TensorMap, TensorMapDesc, TensorType};

type Change<'a> = &'a dyn Fn(&mut TensorMapDesc);

fn for_each(name: &str, test: impl Fn(&Device, &TensorMapDesc)) {
    for_each_device_from(name, (9, 0), |device| {
        let stream = device.stream().unwrap();
        let buffer = stream.zeroed::<u8>(1 << 16).unwrap();
        test(device, &TensorMapDesc::matrix(TensorType::Bf16, buffer.ptr(), [100, 64], 128, [64, 64]));
    });
}

#[test]
fn maps_that_the_hardware_takes() {
    for_each("maps_that_the_hardware_takes", |device, good| {
        let map = device.tensor_map(good).unwrap();
        assert_ne!(map, TensorMap([0; 128]));
        for swizzle in [Swizzle::None, Swizzle::B128] {
            device.tensor_map(&good.clone().swizzle(swizzle)).unwrap();
        }
        for (ty, columns) in [(TensorType::U8, 128), (TensorType::F32, 32), (TensorType::F64, 16), (TensorType::Tf32, 32)] {
            let desc = TensorMapDesc::matrix(ty, good.address, [64, 32], 256, [256, columns]).swizzle(Swizzle::B128);
            device.tensor_map(&desc).unwrap();
        }
        let nan = TensorMapDesc { fill: OutOfBoundsFill::Nan, ..good.clone() };
        assert_ne!(device.tensor_map(&nan).unwrap(), map);
        let three = TensorMapDesc { dims: vec![64, 10, 3], strides: vec![128, 1280], box_dims: vec![64, 10, 2], ..good.clone() };
        device.tensor_map(&three).unwrap();
        let one = TensorMapDesc { dims: vec![1 << 15], strides: vec![], box_dims: vec![256], ..good.clone() };
        device.tensor_map(&one).unwrap();
        let steps = TensorMapDesc { element_strides: vec![1, 2], ..good.clone() };
        device.tensor_map(&steps).unwrap();
    });
}

#[test]
fn maps_that_the_hardware_does_not_take() {
    for_each("maps_that_the_hardware_does_not_take", |device, good| {
        let with = |change: &dyn Fn(&mut TensorMapDesc)| {
            let mut desc = good.clone();
            change(&mut desc);
            let by_raw = device.tensor_map_raw(&desc).unwrap_err();
            let checked = desc.check().unwrap_err();
            assert_eq!(by_raw, checked);
            match checked {
                Error::TensorMap { message } => message,
                e => panic!("{e:?}"),
            }
        };
        let cases: [(&str, Change<'_>); 19] = [
            ("0 dimensions", &|d| (d.dims, d.strides, d.box_dims) = (vec![], vec![], vec![])),
            ("6 dimensions", &|d| (d.dims, d.strides, d.box_dims) = (vec![16; 6], vec![16; 5], vec![16; 6])),
            ("2 strides for 2", &|d| d.strides.push(256)),
            ("0 strides for 2", &|d| d.strides.clear()),
            ("box of 1 dimensions", &|d| d.box_dims.truncate(1)),
            ("1 element strides", &|d| d.element_strides = vec![1]),
            ("multiple of 16", &|d| d.address = d.address.offset(8)),
            ("a dimension of 0", &|d| d.dims[1] = 0),
            ("a dimension of 4294967297", &|d| d.dims[1] = (1 << 32) + 1),
            ("a stride of 136 bytes", &|d| d.strides[0] = 136),
            ("a stride of 1099511627776", &|d| d.strides[0] = 1 << 40),
            ("a box dimension of 0", &|d| d.box_dims[1] = 0),
            ("a box dimension of 257", &|d| d.box_dims[1] = 257),
            ("an element stride of 9", &|d| d.element_strides = vec![1, 9]),
            ("an element stride of 0", &|d| d.element_strides = vec![0, 1]),
            ("12 bytes along", &|d| d.box_dims[0] = 6),
            ("at most the 64 of the swizzle", &|d| d.swizzle = Swizzle::B64),
            ("at most the 32 of the swizzle", &|d| d.swizzle = Swizzle::B32),
            ("NaN outside of a tensor of U8", &|d| {
                (d.ty, d.fill) = (TensorType::U8, OutOfBoundsFill::Nan);
            }),
        ];
        for (part, change) in cases {
            let message = with(change);
            assert!(message.contains(part), "{part}: {message}");
        }
    });
}

#[test]
fn maps_of_dead_memory() {
    for_each("maps_of_dead_memory", |device, good| {
        for address in [DevicePtr(0), DevicePtr(0x1000), good.address.offset(1 << 30)] {
            let desc = TensorMapDesc { address, ..good.clone() };
            assert_eq!(device.tensor_map(&desc), Err(Error::DeadPointer { index: 0, address: address.0 }));
            device.tensor_map_raw(&desc).unwrap();
        }
    });
}
