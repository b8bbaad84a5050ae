//! A network of the test's own: a namespace with a loopback and packet filters that nobody else sees. Needs root,
//! `unshare`, `nsenter`, `ip` and `iptables`.

use std::fs::File;
use std::os::fd::AsFd;
use std::process::{Child, Command, Stdio};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::{PATIENCE, eventually};

/// Ends with the processes and threads in it, the last of which is the one that held it open.
pub(crate) struct Namespace {
    holder: Child,
}

impl Namespace {
    /// Makes one and moves the calling thread into it, with all that this thread starts from now on. Nothing leads back:
    /// the thread has to be the test's own.
    pub(crate) fn enter() -> Self {
        let mut command = Command::new("unshare");
        command.args(["--net", "sleep", "infinity"]).stdin(Stdio::null());
        let holder = command.spawn().expect("unshare can be run; these tests need root");
        let path = format!("/proc/{}/ns/net", holder.id());
        let ours = std::fs::read_link("/proc/thread-self/ns/net").expect("a thread has a network");
        eventually("the namespace is there", PATIENCE, || {
            std::fs::read_link(&path).ok().filter(|theirs| *theirs != ours)
        });
        let file = File::open(&path).expect("the namespace can be opened");
        move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network)).expect("root may enter it");
        run("ip", &["link", "set", "lo", "up"]);
        Self { holder }
    }

    /// A filter that packets pass from now on until it is dropped: the words of an `iptables` rule.
    pub(crate) fn rule(&self, words: &[&str]) -> Rule<'_> {
        let rule = Rule { _namespace: self, words: words.iter().map(|&word| word.to_owned()).collect() };
        rule.change("--append");
        rule
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}

/// See [`Namespace::rule`].
pub(crate) struct Rule<'a> {
    _namespace: &'a Namespace,
    words: Vec<String>,
}

impl Rule<'_> {
    fn change(&self, how: &str) {
        let words: Vec<&str> = self.words.iter().map(String::as_str).collect();
        run("iptables", &[&["--wait", how, "INPUT"], &words[..]].concat());
    }
}

impl Drop for Rule<'_> {
    fn drop(&mut self) {
        self.change("--delete");
    }
}

fn run(program: &str, words: &[&str]) {
    let output = Command::new(program).args(words).stdin(Stdio::null()).output();
    let output = output.unwrap_or_else(|error| panic!("{program} cannot be run: {error}"));
    assert!(output.status.success(), "{program} {words:?}: {}", String::from_utf8_lossy(&output.stderr));
}
