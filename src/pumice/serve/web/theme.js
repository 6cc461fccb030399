// Sets the colours before anything is drawn, so that the page doesn't flash. Not a module: those wait for the document.
"use strict";
(() => {
  const root = document.documentElement;
  const system = matchMedia("(prefers-color-scheme: dark)");
  const stored = () => {
    try { return localStorage.getItem("pumice.theme"); } catch { return null; }
  };
  const isDark = () => (stored() ? stored() === "dark" : system.matches);

  function apply() {
    const choice = stored();
    if (choice) root.dataset.theme = choice;
    else delete root.dataset.theme;
    document.getElementById("theme")?.setAttribute("aria-pressed", String(isDark()));
  }

  // A choice that agrees with the system's isn't kept: the page then follows the system again.
  function toggle() {
    const dark = !isDark();
    try {
      if (dark === system.matches) localStorage.removeItem("pumice.theme");
      else localStorage.setItem("pumice.theme", dark ? "dark" : "light");
    } catch { /* private windows may have no storage: the switch then does nothing */ }
    apply();
  }

  apply();
  system.addEventListener("change", apply);
  document.addEventListener("DOMContentLoaded", () => {
    apply();
    document.getElementById("theme").addEventListener("click", toggle);
  });
})();
