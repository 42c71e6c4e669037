// Asks whether the model is there, and opens the page when it is.

for (;;) {
  const ready = await fetch("/ready").then((response) => response.ok, () => false);
  if (ready) location.reload();
  await new Promise((resolve) => setTimeout(resolve, 1000));
}
