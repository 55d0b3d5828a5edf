// A table wider than the page is scrolled by the keyboard, too: the theme wraps it, but gives it no focus.
function reachable() {
  for (const wrap of document.querySelectorAll(".md-typeset__scrollwrap")) {
    if (wrap.scrollWidth > wrap.clientWidth) {
      wrap.tabIndex = 0;
      wrap.setAttribute("role", "group");
      wrap.setAttribute("aria-label", "Wide table");
    } else {
      for (const name of ["tabindex", "role", "aria-label"]) wrap.removeAttribute(name);
    }
  }
}
addEventListener("load", reachable);
addEventListener("resize", reachable);
