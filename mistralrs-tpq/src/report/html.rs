//! One HTML page that needs nothing else: headings, tables, SVG.

use std::fmt::Write;

#[derive(Debug)]
pub struct Page {
    body: String,
    title: String,
}

const STYLE: &str =
    "body{font:15px/1.45 system-ui,sans-serif;max-width:980px;margin:2em auto;padding:0 1em;color:#222}\
table{border-collapse:collapse;margin:1em 0}th,td{padding:.25em .7em;border-bottom:1px solid #ddd;text-align:right}\
th:first-child,td:first-child{text-align:left}svg{max-width:100%;height:auto}";

impl Page {
    pub fn new(title: &str) -> Self {
        let body = format!("<h1>{}</h1>\n", escape(title));
        Self {
            body,
            title: title.to_owned(),
        }
    }

    pub fn heading(&mut self, text: &str) -> &mut Self {
        let _ = writeln!(self.body, "<h2>{}</h2>", escape(text));
        self
    }

    pub fn paragraph(&mut self, text: &str) -> &mut Self {
        let _ = writeln!(self.body, "<p>{}</p>", escape(text));
        self
    }

    /// The first column is text, the others are numbers.
    pub fn table<'a>(&mut self, columns: &[&str], rows: impl IntoIterator<Item = &'a [String]>) -> &mut Self {
        let cells = |tag: &str, cells: &mut dyn Iterator<Item = &str>| {
            cells
                .map(|cell| format!("<{tag}>{}</{tag}>", escape(cell)))
                .collect::<String>()
        };
        let _ = writeln!(
            self.body,
            "<table><tr>{}</tr>",
            cells("th", &mut columns.iter().copied())
        );
        for row in rows {
            let _ = writeln!(
                self.body,
                "<tr>{}</tr>",
                cells("td", &mut row.iter().map(String::as_str))
            );
        }
        self.body.push_str("</table>\n");
        self
    }

    /// `svg` as the plots of this crate make it: it goes in as it is.
    pub fn svg(&mut self, svg: &str) -> &mut Self {
        self.body.push_str(svg);
        self.body.push('\n');
        self
    }

    pub fn finish(&self) -> String {
        format!(
            "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>{}</title><style>{STYLE}</style></head><body>\n{}</body></html>\n",
            escape(&self.title),
            self.body
        )
    }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_cannot_become_markup_and_nothing_is_fetched() {
        let mut page = Page::new("a < b");
        page.heading("<i>").paragraph("R&D");
        let rows = [vec!["<script>".to_owned(), "1".to_owned()]];
        page.table(&["name", "n"], rows.iter().map(Vec::as_slice));
        let text = page.finish();
        assert!(
            text.contains("<h1>a &lt; b</h1>") && text.contains("<h2>&lt;i&gt;</h2>"),
            "{text}"
        );
        assert!(
            text.contains("<td>&lt;script&gt;</td><td>1</td>") && text.contains("R&amp;D"),
            "{text}"
        );
        assert!(!text.contains("http") && !text.contains("src="), "{text}");
    }
}
