//! Number formats, CPU dispatch, f32 matrix multiply and the small operations of a transformer layer
