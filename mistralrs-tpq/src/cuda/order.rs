//! After which exchange a rank looks for what went wrong: the last one of a forward pass. A pass without a look costs no wait
//! for the device; the results of a pass are waited for anyway. Which one is last is learned from the exchanges themselves,
//! which all ranks make in the same order, so that all look at the same place.

/// The sites of a model in the order of their exchanges.
#[derive(Debug, Default)]
pub struct PassEnd {
    first: Option<u32>,
    previous: Option<u32>,
    last: Option<u32>,
}

impl PassEnd {
    /// Notes an exchange at `site`; whether to look after it. In the first pass that is so after each.
    pub fn is_here(&mut self, site: u32) -> bool {
        if self.last.is_none() && self.first == Some(site) {
            self.last = self.previous;
        }
        self.first.get_or_insert(site);
        self.previous = Some(site);
        self.last.is_none_or(|last| last == site)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_pass_is_looked_at_throughout_and_later_ones_at_their_end() {
        let mut end = PassEnd::default();
        assert_eq!([7, 3, 9].map(|site| end.is_here(site)), [true; 3]);
        for _ in 0..3 {
            assert_eq!([7, 3, 9].map(|site| end.is_here(site)), [false, false, true]);
        }
    }

    #[test]
    fn a_model_with_one_site_is_looked_at_each_time() {
        let mut end = PassEnd::default();
        assert!((0..4).all(|_| end.is_here(5)));
    }

    #[test]
    fn a_pass_with_more_sites_than_the_first_ends_where_the_first_did() {
        let mut end = PassEnd::default();
        assert_eq!([7, 9].map(|site| end.is_here(site)), [true; 2]);
        assert_eq!(
            [7, 9, 100, 101, 7, 9].map(|site| end.is_here(site)),
            [false, true, false, false, false, true]
        );
    }
}
