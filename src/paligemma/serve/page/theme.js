// Runs before the first paint, so that a chosen theme does not flash. "system" is no attribute.
try {
  const theme = localStorage.getItem("paligemma.theme");
  if (theme === "dark" || theme === "light") document.documentElement.dataset.theme = theme;
} catch {
  // A browser that forbids storage follows the system.
}
