//! The text format of Prometheus (prometheus.io/docs/instrumenting/exposition_formats, version 0.0.4).

use std::fmt::Write as _;

/// `Content-Type` of a page.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Counter,
    Gauge,
}

/// A page under construction. Names and label names are literals of this crate; label values may be anything.
#[derive(Debug, Default)]
pub struct Page {
    text: String,
}

impl Page {
    /// One metric with one sample per set of labels; nothing for no samples.
    pub fn metric<'a>(
        &mut self,
        name: &'static str,
        kind: Kind,
        help: &'static str,
        samples: impl IntoIterator<Item = (Vec<(&'static str, &'a str)>, f64)>,
    ) {
        let mut first = true;
        for (labels, value) in samples {
            if std::mem::take(&mut first) {
                let kind = match kind {
                    Kind::Counter => "counter",
                    Kind::Gauge => "gauge",
                };
                // Writing to a String does not fail.
                let _ = writeln!(self.text, "# HELP {name} {help}\n# TYPE {name} {kind}");
            }
            let labels: Vec<String> = labels
                .iter()
                .map(|(label, value)| format!("{label}=\"{}\"", escape(value)))
                .collect();
            let braces = match labels.is_empty() {
                true => String::new(),
                false => format!("{{{}}}", labels.join(",")),
            };
            let _ = writeln!(self.text, "{name}{braces} {value}");
        }
    }

    pub fn finish(self) -> String {
        self.text
    }
}

fn escape(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_what_prometheus_reads() {
        let mut page = Page::default();
        page.metric(
            "a_total",
            Kind::Counter,
            "What it counts.",
            [
                (vec![("rank", "0"), ("odd", "q\"\\\n")], 3.0),
                (vec![("rank", "1"), ("odd", "")], 0.25),
            ],
        );
        page.metric("none", Kind::Gauge, "No sample, no metric.", []);
        page.metric("up", Kind::Gauge, "Bare.", [(vec![], 1.0)]);
        assert_eq!(
            page.finish(),
            "# HELP a_total What it counts.\n# TYPE a_total counter\n\
             a_total{rank=\"0\",odd=\"q\\\"\\\\\\n\"} 3\na_total{rank=\"1\",odd=\"\"} 0.25\n\
             # HELP up Bare.\n# TYPE up gauge\nup 1\n"
        );
    }
}
