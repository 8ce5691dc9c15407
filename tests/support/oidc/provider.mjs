// A real OpenID provider for the tests: anybody may sign in; the login name decides the groups.
// node provider.mjs PORT CERTIFICATE KEY CLIENT_ID REDIRECT_URI
import { readFileSync } from "node:fs";
import { createServer } from "node:https";
import Provider from "oidc-provider";

const [port, certificate, key, clientId, redirectUri] = process.argv.slice(2);
const GROUPS = { olivia: ["fleet-operators"], vera: ["staff", "fleet-viewers"], nobody: ["staff"], alice: ["acme"], both: ["acme", "fleet-viewers"] };
const provider = new Provider(`https://localhost:${port}`, {
  clients: [{ client_id: clientId, redirect_uris: [redirectUri], token_endpoint_auth_method: "none" }],
  claims: { openid: ["sub"], profile: ["preferred_username", "groups"] },
  conformIdTokenClaims: false,
  cookies: { keys: ["only for tests"] },
  findAccount: (_, id) => ({
    accountId: id,
    claims: () => ({ sub: id, preferred_username: id, groups: GROUPS[id] ?? [] }),
  }),
});
const files = { cert: readFileSync(certificate), key: readFileSync(key) };
createServer(files, provider.callback()).listen(Number(port), "127.0.0.1", () => console.log("ready"));
