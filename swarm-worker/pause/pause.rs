//! The first and only process of a sandbox: it keeps the namespaces open, and ends at once when it is told to.
//! `build.rs` makes a static executable of it that needs nothing: no C library, no loader, no file.

#![no_std]
#![no_main]

use core::arch::{asm, global_asm};

// System calls by number.
#[cfg(target_arch = "x86_64")]
mod nr {
    pub const SIGPROCMASK: usize = 14;
    pub const SIGTIMEDWAIT: usize = 128;
    pub const WAIT4: usize = 61;
    pub const EXIT: usize = 60;
}
#[cfg(target_arch = "aarch64")]
mod nr {
    pub const SIGPROCMASK: usize = 135;
    pub const SIGTIMEDWAIT: usize = 137;
    pub const WAIT4: usize = 260;
    pub const EXIT: usize = 93;
}

const SIGINT: isize = 2;
const SIGTERM: isize = 15;
const SIGCHLD: isize = 17;
const SIG_BLOCK: usize = 0;
const WNOHANG: usize = 1;
const SET_BYTES: usize = 8;

// The kernel enters without a return address, so the stack is aligned by hand.
#[cfg(target_arch = "x86_64")]
global_asm!(".globl _start", "_start:", "xor ebp, ebp", "and rsp, -16", "call {run}", run = sym run);
#[cfg(target_arch = "aarch64")]
global_asm!(".globl _start", "_start:", "mov x29, xzr", "bl {run}", run = sym run);

extern "C" fn run() -> ! {
    let set: u64 = [SIGINT, SIGTERM, SIGCHLD].iter().fold(0, |set, signal| set | 1 << (signal - 1));
    let set = &raw const set as usize;
    // The first process of a namespace gets no signal it has not asked for; these wait until they are taken below.
    call(nr::SIGPROCMASK, [SIG_BLOCK, set, 0, SET_BYTES]);
    loop {
        match call(nr::SIGTIMEDWAIT, [set, 0, 0, SET_BYTES]) {
            SIGTERM | SIGINT => exit(0),
            SIGCHLD => while call(nr::WAIT4, [usize::MAX, 0, WNOHANG, 0]) > 0 {},
            _ => {}
        }
    }
}

fn exit(code: usize) -> ! {
    loop {
        call(nr::EXIT, [code, 0, 0, 0]);
    }
}

fn call(number: usize, [a, b, c, d]: [usize; 4]) -> isize {
    let answer: isize;
    // SAFETY: the calls above read one signal set that outlives them, and write nothing.
    #[cfg(target_arch = "x86_64")]
    unsafe {
        asm!("syscall", inlateout("rax") number as isize => answer, in("rdi") a, in("rsi") b, in("rdx") c, in("r10") d,
             lateout("rcx") _, lateout("r11") _, options(nostack));
    }
    // SAFETY: as above.
    #[cfg(target_arch = "aarch64")]
    unsafe {
        asm!("svc 0", in("x8") number, inlateout("x0") a as isize => answer, in("x1") b, in("x2") c, in("x3") d,
             options(nostack));
    }
    answer
}

#[panic_handler]
fn panicked(_: &core::panic::PanicInfo<'_>) -> ! {
    exit(1)
}
