//! Images.

use chrono::{DateTime, Utc};
use serde_json::Value;
use swarm_protocol::api::ImageView;

use super::{age, safe, size, table, value};
use crate::output::Report;

/// Images.
pub(crate) struct Images {
    pub(crate) images: Vec<ImageView>,
    pub(crate) now: DateTime<Utc>,
}

impl Report for Images {
    fn human(&self) -> String {
        let rows = self.images.iter().map(|image| {
            let id = image.config_digest.short();
            vec![image.name.clone(), id, image.platform.clone(), size(image.size_bytes), age(image.pushed_at, self.now)]
        });
        table(&["IMAGE", "ID", "PLATFORM", "SIZE", "AGE"], rows)
    }

    fn json(&self) -> Value {
        value(&self.images)
    }

    fn ids(&self) -> Vec<String> {
        self.images.iter().map(|image| image.config_digest.to_string()).collect()
    }
}

/// An image that was pushed.
pub(crate) struct Pushed {
    pub(crate) image: ImageView,
    /// Whether bytes were sent; else it was there and was only named.
    pub(crate) sent: bool,
}

impl Report for Pushed {
    fn human(&self) -> String {
        let how = if self.sent { "pushed" } else { "already there, tagged" };
        format!("{how}: {} ({})\n", safe(&self.image.name), self.image.config_digest.short())
    }

    fn json(&self) -> Value {
        let mut all = value(&self.image);
        all["sent"] = self.sent.into();
        all
    }

    fn ids(&self) -> Vec<String> {
        vec![self.image.config_digest.to_string()]
    }
}
