// Starts Swagger UI. Litestar's own page has the document in a script within it, which no strict policy can allow.
SwaggerUIBundle({
  url: location.pathname.replace(/\/?$/, "/openapi.json"),
  dom_id: "#swagger-ui",
  presets: [SwaggerUIBundle.presets.apis, SwaggerUIBundle.SwaggerUIStandalonePreset],
  deepLinking: true,
  showCommonExtensions: true,
});
