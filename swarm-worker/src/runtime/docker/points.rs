//! Points around each call to the engine at which tests make the process abort. Compiled out of releases.

/// Passed `before` and `after` the call; a test that sets `CALL-SIDE=return` in `FAILPOINTS` ends the process here.
pub(super) fn pass(call: &str, side: &str) {
    #[cfg(feature = "failpoints")]
    fail::eval(&format!("{}-{side}", call.replace(' ', "-")), |_| std::process::abort());
    let _ = (call, side);
}

/// As [`pass`] on both sides of `work`.
pub(super) async fn around<T>(call: &str, work: impl Future<Output = T>) -> T {
    pass(call, "before");
    let answer = work.await;
    pass(call, "after");
    answer
}
