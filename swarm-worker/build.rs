//! Builds the pause program of sandboxes (`pause/pause.rs`) with the same compiler and linker, for `include_bytes!`.
//! Elsewhere than on the architectures it knows it is left empty, and the worker keeps no sandboxes.

use std::env;
use std::path::Path;
use std::process::Command;

const SOURCE: &str = "pause/pause.rs";

fn main() {
    println!("cargo:rerun-if-changed={SOURCE}");
    println!("cargo:rerun-if-changed=build.rs");
    let target = Path::new(&variable("OUT_DIR")).join("pause");
    let arch = variable("CARGO_CFG_TARGET_ARCH");
    let is_known = variable("CARGO_CFG_TARGET_OS") == "linux" && ["x86_64", "aarch64"].contains(&arch.as_str());
    if is_known {
        compile(&arch, &target);
    } else {
        std::fs::write(&target, []).expect("OUT_DIR can be written");
    }
}

fn compile(arch: &str, target: &Path) {
    // No C library is linked, so the host's own target serves every target of its architecture.
    let host = variable("HOST");
    let is_native = host.starts_with(&format!("{arch}-"));
    let triple = if is_native { host } else { variable("TARGET") };
    let mut rustc = Command::new(variable("RUSTC"));
    rustc.args(["--edition=2024", "--crate-type=bin", "--crate-name=pause", "--target", &triple]);
    for option in ["panic=abort", "opt-level=s", "relocation-model=static", "strip=symbols"] {
        rustc.args(["-C", option]);
    }
    rustc.args(["-C", "link-args=-nostdlib -nostartfiles -static -Wl,--build-id=none"]);
    if triple.contains("musl") {
        // Otherwise rustc adds the start files of its own musl.
        rustc.args(["-C", "link-self-contained=no"]);
    }
    if let (false, Ok(linker)) = (is_native, env::var("RUSTC_LINKER")) {
        rustc.args(["-C", &format!("linker={linker}")]);
    }
    let status = rustc.arg("-o").arg(target).arg(SOURCE).status();
    assert!(status.is_ok_and(|status| status.success()), "{SOURCE} does not compile for {triple}: {rustc:?}");
}

fn variable(name: &str) -> String {
    env::var(name).unwrap_or_else(|_| panic!("cargo sets {name}"))
}
