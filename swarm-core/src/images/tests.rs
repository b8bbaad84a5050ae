use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::{Value, json};
use swarm_protocol::ids::Digest;
use tar::{Builder, EntryType, Header};
use zeroize::Zeroizing;

use super::*;
use crate::blobs::{BlobStore, DiskBlobs, MasterKey};

struct Store {
    dir: tempfile::TempDir,
    blobs: DiskBlobs,
}

fn store() -> Store {
    let dir = tempfile::tempdir().unwrap();
    let key = MasterKey::from_bytes(Zeroizing::new([1; 32]));
    let blobs = DiskBlobs::open(dir.path(), Arc::new(key)).unwrap();
    Store { dir, blobs }
}

impl Store {
    fn stored(&self) -> Vec<Digest> {
        self.blobs.list(None, 1000).unwrap().iter().map(|entry| entry.digest).collect()
    }

    /// Files of uploads that were neither published nor removed.
    fn leftovers(&self) -> Vec<PathBuf> {
        let list = |dir: &Path| std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect::<Vec<_>>();
        let uploads = list(&self.dir.path().join("tmp"));
        uploads.iter().flat_map(|dir| list(dir)).filter(|path| path.file_name() != Some("lock".as_ref())).collect()
    }

    fn import(&self, archive: &[u8]) -> Result<ImportedImage, ImageError> {
        import(archive, &self.blobs, &ImageLimits::default())
    }
}

/// Puts an archive together; names and links go in as they are, however hostile.
struct Archive {
    tar: Builder<Vec<u8>>,
}

impl Default for Archive {
    fn default() -> Self {
        Self { tar: Builder::new(Vec::new()) }
    }
}

impl Archive {
    fn raw(mut self, kind: EntryType, path: &[u8], link: &str, content: &[u8]) -> Self {
        let mut header = Header::new_gnu();
        header.as_old_mut().name[..path.len()].copy_from_slice(path);
        header.as_old_mut().linkname[..link.len()].copy_from_slice(link.as_bytes());
        header.set_entry_type(kind);
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        header.set_cksum();
        self.tar.append(&header, content).unwrap();
        self
    }

    fn file(self, path: &str, content: &[u8]) -> Self {
        self.raw(EntryType::Regular, path.as_bytes(), "", content)
    }

    fn json(self, path: &str, content: &Value) -> Self {
        self.file(path, content.to_string().as_bytes())
    }

    fn blob(self, content: &[u8]) -> Self {
        self.file(&blob_name(content), content)
    }

    fn dir(self, path: &str) -> Self {
        self.raw(EntryType::Directory, path.as_bytes(), "", b"")
    }

    fn symlink(self, path: &str, target: &str) -> Self {
        self.raw(EntryType::Symlink, path.as_bytes(), target, b"")
    }

    fn done(self) -> Vec<u8> {
        self.tar.into_inner().unwrap()
    }
}

fn blob_name(content: &[u8]) -> String {
    format!("blobs/sha256/{}", Digest::of(content).hex())
}

fn layer(seed: u8) -> Vec<u8> {
    Archive::default().file("etc/motd", &vec![seed; 100_000]).done()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn config(layers: &[&[u8]]) -> Vec<u8> {
    let diff_ids: Vec<_> = layers.iter().map(|layer| Digest::of(layer)).collect();
    let section =
        json!({"User": "1000:1000", "Entrypoint": null, "Cmd": ["/bin/sh"], "WorkingDir": "/srv", "Env": ["A=b"]});
    let rootfs = json!({"type": "layers", "diff_ids": diff_ids});
    json!({"architecture": "amd64", "os": "linux", "config": section, "rootfs": rootfs}).to_string().into_bytes()
}

fn saved(config: &[u8], layers: &[&str]) -> Value {
    json!([{"Config": format!("{}.json", Digest::of(config).hex()), "RepoTags": ["tools/x:1"], "Layers": layers}])
}

/// The layout of Docker before 25.
fn docker_save() -> (Archive, Vec<u8>, [Vec<u8>; 2]) {
    let layers = [layer(1), layer(2)];
    let config = config(&[&layers[0], &layers[1], &layers[0]]);
    let archive = Archive::default()
        .json("manifest.json", &saved(&config, &["a/layer.tar", "b/layer.tar", "c/layer.tar"]))
        .file(&format!("{}.json", Digest::of(&config).hex()), &config)
        .dir("a/")
        .file("a/VERSION", b"1.0")
        .file("a/json", b"{}")
        .file("a/layer.tar", &layers[0])
        .dir("b/")
        .file("./b/layer.tar", &layers[1])
        .dir("c/")
        .symlink("c/layer.tar", "../a/layer.tar")
        .file("repositories", b"{}");
    (archive, config, layers)
}

fn descriptor(kind: &str, content: &[u8]) -> Value {
    json!({"mediaType": kind, "digest": Digest::of(content), "size": content.len()})
}

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const TAR: &str = "application/vnd.oci.image.layer.v1.tar";
const TAR_GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

fn manifest(config: &[u8], layers: &[Value]) -> Vec<u8> {
    let config = descriptor(CONFIG, config);
    json!({"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": layers}).to_string().into_bytes()
}

fn named(mut descriptor: Value, name: &str) -> Value {
    descriptor["annotations"] = json!({"org.opencontainers.image.ref.name": name});
    descriptor
}

fn layout(entries: &[Value]) -> Archive {
    Archive::default()
        .json("oci-layout", &json!({"imageLayoutVersion": "1.0.0"}))
        .json("index.json", &json!({"schemaVersion": 2, "manifests": entries}))
}

fn oci(layer_descriptors: &[Value], config: &[u8]) -> Archive {
    let manifest = manifest(config, layer_descriptors);
    layout(&[named(descriptor(MANIFEST, &manifest), "x:1")]).blob(&manifest).blob(config)
}

#[test]
fn a_docker_save_archive_is_imported_and_only_its_image_is_kept() {
    let (archive, config, layers) = docker_save();
    for bytes in [archive.done(), gzip(&docker_save().0.done())] {
        let store = store();
        let image = store.import(&bytes).unwrap();
        assert_eq!(image.config_digest, Digest::of(&config));
        assert_eq!(image.config_size_bytes, config.len() as u64);
        assert_eq!(image.names, ["tools/x:1"]);
        let digests: Vec<_> = image.layers.iter().map(|layer| layer.digest).collect();
        assert_eq!(digests, [Digest::of(&layers[0]), Digest::of(&layers[1]), Digest::of(&layers[0])]);
        assert!(image.layers.iter().all(|layer| layer.media == LayerMedia::Tar && layer.diff_id == layer.digest));
        let ImageConfig { user, entrypoint, cmd, workdir, env, architecture, .. } = image.config;
        assert_eq!((user.as_str(), workdir.as_str(), architecture.as_str()), ("1000:1000", "/srv", "amd64"));
        assert_eq!((entrypoint, cmd, env), (vec![], vec!["/bin/sh".to_owned()], vec!["A=b".to_owned()]));
        let mut expected = vec![Digest::of(&config), Digest::of(&layers[0]), Digest::of(&layers[1])];
        expected.sort_unstable();
        assert_eq!(store.stored(), expected);
        assert_eq!(store.leftovers(), Vec::<PathBuf>::new());
        let mut content = Vec::new();
        store.blobs.open(&Digest::of(&layers[0])).unwrap().read_to_end(&mut content).unwrap();
        assert!(content == layers[0]);
    }
}

#[test]
fn an_oci_layout_with_gzip_layers_is_imported() {
    let store = store();
    let (plain, compressed) = (layer(1), gzip(&layer(2)));
    let config = config(&[&plain, &layer(2)]);
    let archive = oci(&[descriptor(TAR, &plain), descriptor(TAR_GZIP, &compressed)], &config);
    let image = store.import(&archive.blob(&plain).blob(&compressed).done()).unwrap();
    assert_eq!(image.names, ["x:1"]);
    let second = &image.layers[1];
    assert_eq!(
        (second.media, second.digest, second.diff_id),
        (LayerMedia::Gzip, Digest::of(&compressed), Digest::of(&layer(2)))
    );
    assert_eq!(second.size_bytes, compressed.len() as u64);
    assert_eq!(store.stored().len(), 3);
}

#[test]
fn an_archive_with_both_documents_is_one_image() {
    let plain = layer(1);
    let config = config(&[&plain]);
    let list = json!([{"Config": blob_name(&config), "RepoTags": null, "Layers": [blob_name(&plain)]}]);
    let archive = oci(&[descriptor(TAR, &plain)], &config).blob(&plain).json("manifest.json", &list);
    let image = store().import(&archive.done()).unwrap();
    assert_eq!(image.config_digest, Digest::of(&config));
    assert_eq!(image.names, Vec::<String>::new());
}

#[test]
fn a_nested_index_leads_to_the_platform_that_was_saved() {
    let plain = layer(1);
    let config = config(&[&plain]);
    let here = manifest(&config, &[descriptor(TAR, &plain)]);
    let mut attestation = descriptor(MANIFEST, b"attestation");
    attestation["annotations"] = json!({"vnd.docker.reference.type": "attestation-manifest"});
    let entries = [descriptor(MANIFEST, &here), descriptor(MANIFEST, b"another platform, not saved"), attestation];
    let nested = json!({"schemaVersion": 2, "manifests": entries}).to_string().into_bytes();
    // containerd writes one entry for each name of an image.
    let top = descriptor(INDEX, &nested);
    let archive = layout(&[named(top.clone(), "x:1"), named(top, "x:2")]);
    let image = store().import(&archive.blob(&nested).blob(&here).blob(&config).blob(&plain).done()).unwrap();
    assert_eq!(image.config_digest, Digest::of(&config));
    assert_eq!(image.names, ["x:1", "x:2"]);
}

#[test]
fn long_names_come_through_pax_and_gnu_headers() {
    let plain = layer(1);
    let config = config(&[&plain]);
    let path = format!("{}/layer.tar", "d".repeat(200));
    let list = saved(&config, &[&path]);
    let record = format!(" path={path}\n");
    let length = record.len() + 3;
    let pax = Archive::default()
        .raw(EntryType::XHeader, b"PaxHeaders/0", "", format!("{length}{record}").as_bytes())
        .file("short", &plain);
    let gnu = Archive::default()
        .raw(EntryType::GNULongName, b"././@LongLink", "", format!("{path}\0").as_bytes())
        .file("short", &plain);
    for archive in [pax, gnu] {
        let name = format!("{}.json", Digest::of(&config).hex());
        let image = store().import(&archive.file(&name, &config).json("manifest.json", &list).done()).unwrap();
        assert_eq!(image.layers[0].digest, Digest::of(&plain));
    }
}

/// Imports into a fresh store, expects a refusal that says all of `words`, and that nothing is left behind.
#[track_caller]
fn refused(archive: &[u8], words: &[&str]) {
    refused_within(archive, &ImageLimits::default(), words);
}

#[track_caller]
fn refused_within(archive: &[u8], limits: &ImageLimits, words: &[&str]) {
    let store = store();
    let error = import(archive, &store.blobs, limits).unwrap_err();
    let text = format!("{:#}", anyhow::Error::from(error));
    for word in words {
        assert!(text.contains(word), "`{word}` is not in: {text}");
    }
    assert!(!text.chars().any(char::is_control), "{text:?}");
    assert_eq!(store.stored(), []);
    assert_eq!(store.leftovers(), Vec::<PathBuf>::new());
}

#[test]
fn names_that_leave_the_archive_are_refused() {
    let with = |path: &str| docker_save().0.file(path, b"x").done();
    refused(&with("/etc/passwd"), &["`/etc/passwd`", "absolute path", "docker save"]);
    refused(&with("a/../../etc/passwd"), &["`a/../../etc/passwd`", "`..`"]);
    refused(&with("a\u{1b}[2J"), &["a\\u{1b}[2J", "control characters"]);
    refused(&docker_save().0.raw(EntryType::Regular, b"\xff\xfe", "", b"").done(), &["not UTF-8"]);
    let pax = |record: &[u8]| docker_save().0.raw(EntryType::XHeader, b"p", "", record).file("x", b"").done();
    refused(&pax(b"15 path=../x\0y\n"), &["control characters"]);
    refused(&pax(b"13 path=../x\n"), &["`../x`", "`..`"]);
    refused(&pax(b"99 path=../x\n"), &["PAX header", "malformed"]);
    refused(&pax(b"10 size=a\n"), &["PAX header", "malformed"]);
    let link = |target: &str| docker_save().0.symlink("d/l", target).done();
    refused(&link("/etc/passwd"), &["`d/l`", "outside the archive"]);
    refused(&link("../../x"), &["`d/l`", "outside the archive"]);
    refused(&docker_save().0.raw(EntryType::Link, b"d/l", "../x", b"").done(), &["`d/l`", "outside the archive"]);
}

#[test]
fn doubled_members_and_devices_are_refused() {
    refused(&docker_save().0.file("a/layer.tar", b"x").done(), &["`a/layer.tar`", "twice"]);
    refused(&docker_save().0.file("./a//layer.tar", b"x").done(), &["twice"]);
    refused(&docker_save().0.symlink("a/json", "VERSION").done(), &["`a/json`", "twice"]);
    refused(&docker_save().0.file("a", b"x").done(), &["`a`", "twice"]);
    for kind in [EntryType::Char, EntryType::Block, EntryType::Fifo, EntryType::GNUSparse] {
        refused(&docker_save().0.raw(kind, b"dev/x", "", b"").done(), &["`dev/x`", "device"]);
    }
}

#[test]
fn links_in_a_circle_or_to_nothing_are_refused() {
    let config = config(&[&layer(1)]);
    let name = format!("{}.json", Digest::of(&config).hex());
    let base = || Archive::default().file(&name, &config).json("manifest.json", &saved(&config, &["l"]));
    refused(&base().symlink("l", "m").symlink("m", "l").done(), &["`l`", "circle"]);
    refused(&base().symlink("l", "gone").done(), &["lacks `l`", "manifest.json", "docker save"]);
}

#[test]
fn bounds_hold() {
    let limits = ImageLimits::default;
    let whole = docker_save().0.done();
    refused_within(&whole, &ImageLimits { members_max: 5, ..limits() }, &["number of archive members", "5"]);
    refused_within(&whole, &ImageLimits { member_bytes_max: 90_000, ..limits() }, &["a/layer.tar", "90000 bytes"]);
    refused_within(&whole, &ImageLimits { archive_bytes_max: 150_000, ..limits() }, &["unpacked archive"]);
    refused_within(&gzip(&whole), &ImageLimits { archive_bytes_max: 150_000, ..limits() }, &["unpacked archive"]);
    refused_within(&whole, &ImageLimits { path_bytes_max: 8, ..limits() }, &["name of archive member"]);
    refused_within(&whole, &ImageLimits { layers_max: 2, ..limits() }, &["number of the image's layers", "2 layers"]);
    refused_within(&whole, &ImageLimits { expanded_bytes_max: 150_000, ..limits() }, &["b/layer.tar", "unpacked"]);

    let bomb = Archive::default().file("zeros", &vec![0; 40 << 20]).done();
    let (compressed, config) = (gzip(&bomb), config(&[&bomb]));
    let archive = oci(&[descriptor(TAR_GZIP, &compressed)], &config).blob(&compressed).done();
    let tight = ImageLimits { expansion_ratio_max: 50, ..limits() };
    refused_within(&archive, &tight, &[&Digest::of(&compressed).hex(), "50 times its stored size"]);
    store().import(&archive).unwrap();

    let huge = vec![b' '; DOCUMENT_BYTES_MAX as usize + 1];
    refused(&Archive::default().file("manifest.json", &huge).done(), &["`manifest.json`", "4194304 bytes"]);

    // A size no stream keeps, and an extension that would fill the memory.
    let mut lie = Header::new_gnu();
    lie.as_old_mut().name[..3].copy_from_slice(b"big");
    lie.set_entry_type(EntryType::Regular);
    lie.set_size(u64::MAX);
    lie.set_cksum();
    refused(lie.as_bytes(), &["`big`", "exceeds the limit"]);
    for kind in [EntryType::XHeader, EntryType::XGlobalHeader, EntryType::GNULongName, EntryType::GNULongLink] {
        lie.set_entry_type(kind);
        lie.set_size(1 << 40);
        lie.set_cksum();
        refused(lie.as_bytes(), &["extended tar header", "65536 bytes"]);
    }
}

#[test]
fn a_cut_or_damaged_archive_is_refused_wherever_it_is_cut() {
    let whole = docker_save().0.done();
    for cut in [10, 700, 1500, 30_000, 120_000, whole.len() / 2 + 77] {
        let store = store();
        assert!(store.import(&whole[..cut]).is_err(), "cut at {cut}");
        assert_eq!((store.stored(), store.leftovers()), (vec![], vec![]));
    }
    refused(&whole[..30_000], &["ends in the middle of", "send it again"]);
    let compressed = gzip(&whole);
    refused(&compressed[..compressed.len() / 2], &["ends in the middle of"]);
    refused(&compressed[..compressed.len() - 4], &["ends in the middle of"]);
    let mut damaged = whole.clone();
    damaged[512 * 3] ^= 1;
    assert!(store().import(&damaged).is_err());
}

#[test]
fn what_is_no_image_archive_is_told_so() {
    refused(b"", &["not an image archive"]);
    refused(&vec![b'<'; 5000], &["does not begin with a tar header", "docker save"]);
    refused(b"\x28\xb5\x2f\xfd rest", &["compressed with zstd"]);
    refused(b"\xfd7zXZ\0 rest", &["compressed with xz"]);
    refused(&layer(1), &["neither manifest.json nor index.json", "docker export"]);
    refused(&Archive::default().file("manifest.json", b"[{").done(), &["`manifest.json`", "list of saved images"]);
    refused(&Archive::default().file("manifest.json", b"[]").done(), &["neither"]);
    let deep = "[".repeat(100_000);
    refused(&Archive::default().file("manifest.json", deep.as_bytes()).done(), &["`manifest.json`"]);
}

#[test]
fn several_images_are_listed() {
    let two = json!([
        {"Config": "a.json", "RepoTags": ["x:1"], "Layers": []},
        {"Config": "b.json", "RepoTags": ["y:2\u{1b}[2J"], "Layers": []},
    ]);
    let archive = Archive::default().json("manifest.json", &two).done();
    refused(&archive, &["2 images (x:1, y:2\\u{1b}[2J)", "pass one", "docker save NAME"]);
    let (one, other) = (manifest(b"a", &[]), manifest(b"b", &[]));
    let archive = layout(&[named(descriptor(MANIFEST, &one), "x:1"), named(descriptor(MANIFEST, &other), "y:2")]);
    refused(&archive.blob(&one).blob(&other).done(), &["2 images (x:1, y:2)", "pass one"]);
}

#[test]
fn content_must_match_its_digests_and_the_config_its_layers() {
    let plain = layer(1);
    let good = config(&[&plain]);
    let name = format!("{}.json", Digest::of(&good).hex());
    let save = |config: &[u8], layers: &[&str]| {
        Archive::default().file(&name, config).file("l", &plain).json("manifest.json", &saved(&good, layers)).done()
    };
    store().import(&save(&good, &["l"])).unwrap();
    refused(&save(&good, &["l", "l"]), &["lists 2 layers", "config lists 1"]);
    refused(&save(&good, &[]), &["lists 0 layers"]);
    refused(&save(&config(&[&layer(2)]), &["l"]), &["was announced", &Digest::of(&good).hex()]);

    let wrong = config(&[&layer(2)]);
    let list = json!([{"Config": "config", "Layers": ["l"]}]);
    let archive =
        |config: &[u8]| Archive::default().file("config", config).file("l", &plain).json("manifest.json", &list).done();
    refused(&archive(&wrong), &["layer `l`", &Digest::of(&plain).hex(), &Digest::of(&layer(2)).hex()]);
    let windows = String::from_utf8(good.clone()).unwrap().replace("linux", "windows");
    refused(&archive(windows.as_bytes()), &["`windows`", "jobs run on linux"]);
    refused(&archive(b"{}"), &["`config`", "image config"]);

    refused(&oci(&[descriptor(TAR, &plain)], &good).file(&blob_name(&plain), b"x").done(), &["was announced"]);
    refused(&oci(&[descriptor(TAR, &plain)], &good).done(), &["lacks `blobs/sha256/"]);
    let mut short = descriptor(TAR, &plain);
    short["size"] = json!(5);
    refused(&oci(&[short], &good).blob(&plain).done(), &["has 5 bytes, but it has"]);
    let zstd = descriptor("application/vnd.oci.image.layer.v1.tar+zstd", &plain);
    refused(&oci(&[zstd], &good).blob(&plain).done(), &["zstd", "docker save IMAGE"]);
    let hidden = b"\x28\xb5\x2f\xfd hidden".to_vec();
    let config_of_hidden = config(&[&hidden]);
    refused(&oci(&[descriptor(TAR, &hidden)], &config_of_hidden).blob(&hidden).done(), &["compressed with zstd"]);
    let cut = &gzip(&plain)[..50];
    refused(&oci(&[descriptor(TAR_GZIP, cut)], &good).blob(cut).done(), &["damaged gzip file"]);
    let other = gzip(&layer(2));
    refused(
        &oci(&[descriptor(TAR_GZIP, &other)], &good).blob(&other).done(),
        &["unpacks to", &Digest::of(&layer(2)).hex()],
    );
}

#[test]
fn a_layout_without_its_marker_or_with_an_artifact_is_refused() {
    let good = manifest(b"c", &[]);
    let index = json!({"schemaVersion": 2, "manifests": [descriptor(MANIFEST, &good)]});
    refused(&Archive::default().json("index.json", &index).done(), &["lacks `oci-layout`"]);
    let marker = json!({"imageLayoutVersion": "9"});
    refused(&Archive::default().json("oci-layout", &marker).json("index.json", &index).done(), &["version `9`"]);
    let artifact = String::from_utf8(good).unwrap().replace(CONFIG, "application/x-chart").into_bytes();
    refused(&layout(&[descriptor(MANIFEST, &artifact)]).blob(&artifact).blob(b"c").done(), &["artifact"]);
    let nested = json!({"manifests": []}).to_string().into_bytes();
    let mut all = vec![nested];
    for _ in 0..4 {
        let inner = descriptor(INDEX, all.last().unwrap());
        all.push(json!({"manifests": [inner]}).to_string().into_bytes());
    }
    let archive = layout(&[descriptor(INDEX, all.last().unwrap())]);
    refused(&all.iter().fold(archive, |archive, index| archive.blob(index)).done(), &["too deep"]);
}

#[test]
fn a_failing_source_is_reported_as_such() {
    struct Broken;
    impl Read for Broken {
        fn read(&mut self, _: &mut [u8]) -> std::io::Result<usize> {
            Err(std::io::Error::from(std::io::ErrorKind::ConnectionReset))
        }
    }
    let store = store();
    let whole = docker_save().0.done();
    let error = import(whole[..60_000].chain(Broken), &store.blobs, &ImageLimits::default()).unwrap_err();
    assert!(
        matches!(&error, ImageError::Read(source) if source.kind() == std::io::ErrorKind::ConnectionReset),
        "{error}"
    );
    assert_eq!(store.leftovers(), Vec::<PathBuf>::new());
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig { cases: 64, failure_persistence: None, ..Default::default() })]

    /// Whatever a flipped byte does to the archive, an import that succeeds is the same image.
    #[test]
    fn a_changed_byte_never_changes_the_image(at in proptest::prelude::any::<proptest::sample::Index>(), bit in 0u8..8) {
        let store = store();
        let (archive, config, layers) = docker_save();
        let mut bytes = archive.done();
        let at = at.index(bytes.len());
        bytes[at] ^= 1 << bit;
        if let Ok(image) = store.import(&bytes) {
            proptest::prop_assert_eq!(image.config_digest, Digest::of(&config));
            proptest::prop_assert_eq!(image.layers[1].digest, Digest::of(&layers[1]));
        }
        proptest::prop_assert_eq!(store.leftovers(), Vec::<PathBuf>::new());
    }
}
