// Before anything is drawn, so that nothing flashes; therefore no module.
{
  const theme = localStorage.getItem("protostar:theme");
  if (theme) document.documentElement.dataset.theme = theme;
}
