//! With the feature `cuda`: compiles the jumps to the driver's functions, so that the program starts without a driver.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=csrc");
    if let Ok(root) = std::env::var("CARGO_MANIFEST_DIR") {
        println!("cargo:include={root}/include");
    }
    #[cfg(feature = "cuda")]
    driver_stub();
}

#[cfg(feature = "cuda")]
fn driver_stub() {
    let is = |name: &str, value: &str| std::env::var(name).is_ok_and(|v| v == value);
    // Elsewhere `cust` links the driver the ordinary way. Documentation is built without a C compiler.
    if std::env::var_os("DOCS_RS").is_some() || !is("CARGO_CFG_TARGET_OS", "linux") {
        return;
    }
    // All of it, and not only what was asked for so far: what asks comes later on the linker's command line.
    cc::Build::new().file("csrc/driver_stub.c").link_lib_modifier("+whole-archive").compile("v3_gpu_driver_stub");
}
