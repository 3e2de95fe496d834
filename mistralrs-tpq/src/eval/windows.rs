//! Which windows of a text are evaluated.

use std::ops::Range;

/// Windows of `window` tokens, `most` tokens together at most, spread evenly over a text of `tokens`: a text's head alone
/// (a table, a licence) says little about the rest. A text shorter than `most` is taken whole; its last window may then be
/// shorter, and a single last token, which predicts nothing, is left out.
pub fn windows(tokens: usize, window: usize, most: usize) -> Vec<Range<usize>> {
    if window < 2 || most < 2 {
        return Vec::new();
    }
    if tokens <= most {
        let starts = (0..tokens).step_by(window);
        let ranges = starts.map(|start| start..(start + window).min(tokens));
        return ranges.filter(|range| range.len() > 1).collect();
    }
    let window = window.min(most);
    let count = most / window;
    let gaps = tokens - count * window;
    let places = (0..count).map(|i| match count {
        1 => 0,
        _ => i * window + gaps * i / (count - 1),
    });
    places.map(|start| start..start + window).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spans(tokens: usize, window: usize, most: usize) -> Vec<(usize, usize)> {
        let ranges = windows(tokens, window, most);
        ranges.into_iter().map(|range| (range.start, range.end)).collect()
    }

    #[test]
    fn a_short_text_is_taken_whole() {
        assert_eq!(spans(10, 4, 100), [(0, 4), (4, 8), (8, 10)]);
        assert_eq!(spans(9, 4, 100), [(0, 4), (4, 8)]);
        assert_eq!(spans(3, 4, 100), [(0, 3)]);
        assert!(windows(1, 4, 100).is_empty());
        assert!(windows(0, 4, 100).is_empty());
    }

    #[test]
    fn windows_of_a_long_text_reach_from_its_first_token_to_its_last_and_do_not_overlap() {
        for (tokens, window, most) in [(1000, 10, 100), (101, 10, 100), (7919, 64, 1000), (13, 2, 7)] {
            let ranges = windows(tokens, window, most);
            assert_eq!(ranges.len(), most / window);
            assert!(ranges.iter().all(|range| range.len() == window));
            assert!(ranges.windows(2).all(|pair| pair[0].end <= pair[1].start));
            assert_eq!((ranges[0].start, ranges.last().unwrap().end), (0, tokens));
        }
    }

    #[test]
    fn one_window_is_the_head_and_sizes_that_predict_nothing_give_none() {
        assert_eq!(spans(1000, 64, 100), [(0, 64)]);
        assert_eq!(spans(1000, 64, 10), [(0, 10)]);
        assert!(windows(1000, 1, 100).is_empty());
        assert!(windows(1000, 64, 1).is_empty());
    }
}
