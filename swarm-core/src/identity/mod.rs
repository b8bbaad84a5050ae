//! Who somebody is and what they may do: passwords, tokens and the limits on guessing them.

pub mod jwt;
pub mod limits;
pub mod password;
pub mod tokens;
