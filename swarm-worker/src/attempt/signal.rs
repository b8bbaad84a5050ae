//! Which signal asks a container to end.

/// Names of Linux signals, without `SIG`, but for those of real time.
const NAMES: [&str; 34] = [
    "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "IOT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2", "PIPE", "ALRM",
    "TERM", "STKFLT", "CHLD", "CLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG", "XCPU", "XFSZ", "VTALRM", "PROF",
    "WINCH", "IO", "POLL", "PWR", "SYS",
];

/// The image's STOPSIGNAL, such as `SIGINT`, `INT`, `SIGRTMIN+3` or `2`. No engine checks it before it is sent, so like
/// Docker's own `stop` this takes SIGTERM in place of what is none.
pub(super) fn stop_signal(of_image: Option<&str>) -> &str {
    of_image.filter(|signal| is_signal(signal)).unwrap_or("SIGTERM")
}

fn is_signal(text: &str) -> bool {
    let is_digits = |number: &str| number.bytes().all(|byte| byte.is_ascii_digit());
    let within =
        |number: &str, most: u8| is_digits(number) && number.parse().is_ok_and(|n: u8| (1..=most).contains(&n));
    let name = text.strip_prefix("SIG").unwrap_or(text);
    let of_real_time = || match (name.strip_prefix("RTMIN"), name.strip_prefix("RTMAX")) {
        (Some(rest), _) => rest.is_empty() || rest.strip_prefix('+').is_some_and(|above| within(above, 15)),
        (_, Some(rest)) => rest.is_empty() || rest.strip_prefix('-').is_some_and(|below| within(below, 14)),
        _ => false,
    };
    within(text, 64) || NAMES.contains(&name) || of_real_time()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_s_signal_is_sent_if_it_is_one() {
        for signal in ["SIGINT", "INT", "SIGQUIT", "9", "64", "SIGRTMIN", "SIGRTMIN+3", "RTMAX-14"] {
            assert_eq!(stop_signal(Some(signal)), signal);
        }
        let none =
            ["", "0", "65", "-2", "+2", "sigint", "SIG", "SIGNOPE", "SIG9", "SIGRTMIN+16", "SIGRTMAX-", "INT&x=1"];
        for signal in none {
            assert_eq!(stop_signal(Some(signal)), "SIGTERM", "{signal}");
        }
        assert_eq!(stop_signal(None), "SIGTERM");
    }
}
