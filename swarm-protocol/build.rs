//! Tells the schema generator what the type aliases of this crate stand for.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    utoipa_config::Config::new()
        .alias_for("Timestamp", "DateTime")
        .alias_for("Labels", "BTreeMap<String, String>")
        .alias_for("TaskIndex", "u32")
        .alias_for("AttemptNo", "u16")
        .write_to_file();
}
