//! What a journal that wraps another leaves as it is.

/// All methods of `Journal` but `append` and `heartbeat`, answered by the field `store`, which does not block; all but `append`, with a
/// field that says whether it does; or those that nobody wraps.
macro_rules! forward_to_store {
    () => {
        forward_to_store!(claims and leaves);

        fn blocks(&self) -> bool {
            false
        }
    };
    (all but append) => {
        forward_to_store!(claims and leaves);

        fn blocks(&self) -> bool {
            self.blocks
        }

        fn heartbeat(&self, by: &Incarnation, lease: Duration) -> Pending<'_, ()> {
            self.store.heartbeat(by, lease)
        }
    };
    (claims and leaves) => {
        forward_to_store!(the rest);

        fn leave(&self, by: &Incarnation) -> Pending<'_, ()> {
            self.store.leave(by)
        }

        fn claim(&self, claim: Claim) -> Pending<'_, Vec<Stored>> {
            self.store.claim(claim)
        }
    };
    (the rest) => {
        forward_to_store!(all but list);

        fn list(&self, query: Query) -> Pending<'_, Vec<Head>> {
            self.store.list(query)
        }
    };
    (all but list) => {
        forward_to_store!(all but list and requests);

        fn requests(&self, by: &Incarnation) -> Pending<'_, Vec<Request>> {
            self.store.requests(by)
        }
    };
    (all but list and requests) => {
        fn now(&self) -> Pending<'_, Timestamp> {
            self.store.now()
        }

        fn announce(&self, by: &Incarnation, presence: Presence) -> Pending<'_, ()> {
            self.store.announce(by, presence)
        }

        fn orchestrators(&self) -> Pending<'_, Vec<Registered>> {
            self.store.orchestrators()
        }

        fn load(&self, saga: &SagaId) -> Pending<'_, Option<Stored>> {
            self.store.load(saga)
        }

        fn request(&self, request: Request) -> Pending<'_, Requested> {
            self.store.request(request)
        }

        fn forget(&self, by: &str, before: Timestamp, limit: usize) -> Pending<'_, usize> {
            self.store.forget(by, before, limit)
        }

        fn forgotten(&self, limit: usize) -> Pending<'_, Vec<Forgotten>> {
            self.store.forgotten(limit)
        }
    };
}
