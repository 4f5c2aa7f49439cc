//! The five stories, as the demo plays them, each on a shelf that the others have used.

use e2e::shelf::{Plan, Shelf};
use e2e::stories::{Silent, Story};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_five_stories_hold() -> anyhow::Result<()> {
    let mut shelf = Shelf::start(Plan::default()).await?;
    for story in Story::ALL {
        let seen = story.play(&mut shelf, &mut Silent).await;
        let seen = seen.map_err(|error| error.context(story.name()))?;
        assert!(!seen.is_empty());
    }
    shelf.stop().await
}
