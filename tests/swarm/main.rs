//! Whole-swarm tests: the real binaries, real Docker, real kills. After each scenario the checker judges what was seen,
//! what the store holds and what the engine did. `SWARM_TEST_TIER=full` multiplies the counts; lines beginning with
//! `REPORT ` are figures, and `SHOWN ` fills a cell of the fault matrix (`matrix.rs`).

mod api;
mod demo;
mod directories;
mod doctor;
mod ends;
mod faults;
mod files;
mod harness;
mod inputs;
mod jobs;
mod labels;
mod limits;
mod logs;
mod matrix;
mod modules;
mod power;
mod readme;
mod sandboxes;
mod schedules;
mod up;
