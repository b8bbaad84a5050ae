use super::*;

fn lived(seed: u64, with_faults: bool) -> Outcome {
    let outcome = run(seed, Options { with_faults, is_shown: false }).unwrap();
    assert!(outcome.is_good(), "seed {seed}: {:?}\n{}", outcome.stuck, outcome.report);
    outcome
}

#[test]
fn a_world_without_faults_ends_well_and_is_judged() {
    let outcome = lived(1, false);
    for invariant in [Invariant::I1, Invariant::I2, Invariant::I3, Invariant::I4, Invariant::I5, Invariant::I8] {
        assert!(outcome.report.of(invariant).checked > 0, "{invariant:?}\n{}", outcome.report);
    }
}

#[test]
fn a_seed_does_the_same_again() {
    for seed in 1..=3 {
        let [first, second] = [(); 2].map(|()| lived(seed, true));
        assert_eq!((first.hash, first.happened), (second.hash, second.happened), "seed {seed}");
        assert_eq!(first.lived, second.lived);
    }
}

#[test]
fn other_seeds_do_other_things() {
    assert_ne!(lived(4, false).hash, lived(5, false).hash);
}
