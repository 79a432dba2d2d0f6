"""The join as a Faust app, for teams that run Faust: `app` is Faust's side, `engine` is ours."""
